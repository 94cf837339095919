# Drives a Python interpreter for query mode. Commands arrive on descriptor 3 as JSON lines, events leave on 4; stdout and
# stderr are the user's. Little is imported at the start: the time to the first answer is the user's time.
def _bai_main():
    import builtins
    import io
    import json
    import os
    import sys

    commands = io.open(3, "r", encoding="utf-8", newline="\n")
    events = io.open(4, "w", encoding="utf-8", newline="\n")
    for fd in (3, 4):
        os.set_inheritable(fd, False)
    main = sys.modules["__main__"]
    namespace = main.__dict__
    namespace.pop("_bai_main", None)
    namespace["__builtins__"] = builtins
    sys.argv = [""]
    sys.path.insert(0, "")
    state = {"cell": 0, "running": False}

    def flush():
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except Exception:
                pass

    def tell(event):
        flush()
        events.write(json.dumps(event) + "\n")
        events.flush()

    def ask(prompt, password):
        if prompt:
            sys.stdout.write(str(prompt))
        tell({"input": {"password": password}})
        answer = json.loads(commands.readline())
        if "interrupt" in answer:
            raise KeyboardInterrupt
        return answer["input"].rstrip("\n")

    def read_input(prompt="", /):
        return ask(prompt, False)

    def read_password(prompt="Password: ", stream=None):
        return ask(prompt, True)

    def as_text(data):
        import base64

        return base64.b64encode(data).decode("ascii") if isinstance(data, bytes) else data

    def rich(value):
        """Events that show a value richly; none if it has only a repr."""
        if isinstance(value, type):
            return []
        bundle = getattr(value, "_repr_mimebundle_", None)
        if bundle is not None:
            try:
                data = bundle()
                data = data[0] if isinstance(data, tuple) else data
                for mime in ("text/html", "image/svg+xml", "image/png", "image/jpeg"):
                    if mime in (data or {}):
                        return [event_of(mime, data[mime])]
            except NotImplementedError:
                pass
        for method, mime in (
            ("_repr_html_", "text/html"),
            ("_repr_svg_", "image/svg+xml"),
            ("_repr_png_", "image/png"),
            ("_repr_jpeg_", "image/jpeg"),
        ):
            render = getattr(value, method, None)
            if render is not None:
                data = render()
                data = data[0] if isinstance(data, tuple) else data
                if data is not None:
                    return [event_of(mime, data)]
        return []

    def event_of(mime, data):
        return {"html": data} if mime == "text/html" else {"media": [mime, as_text(data)]}

    def display(*values, **_):
        for value in values:
            shown = rich(value)
            for event in shown:
                tell(event)
            if not shown:
                print(repr(value))

    def display_last(value):
        if value is None:
            return
        builtins._ = value
        shown = rich(value)
        for event in shown:
            tell(event)
        if not shown:
            sys.stdout.write(repr(value))

    def show_figures():
        pyplot = sys.modules.get("matplotlib.pyplot")
        if pyplot is None:
            return
        for number in pyplot.get_fignums():
            data = io.BytesIO()
            pyplot.figure(number).savefig(data, format="png", bbox_inches="tight")
            tell({"media": ["image/png", as_text(data.getvalue())]})
        pyplot.close("all")

    class PatchIPython:
        """Makes IPython's display() ours, as soon as somebody imports it."""

        name = "IPython.core.display_functions"

        def find_spec(self, name, path, target=None):
            if name != self.name:
                return None
            sys.meta_path.remove(self)
            import importlib.util

            spec = importlib.util.find_spec(name)
            if spec is None or spec.loader is None:
                return spec
            load = spec.loader.exec_module

            def exec_module(module):
                load(module)
                module.display = display

            spec.loader.exec_module = exec_module
            return spec

    sys.meta_path.insert(0, PatchIPython())

    def show_traceback(error, filename):
        import traceback

        # Without our own frames.
        frames = error.__traceback__
        while frames is not None and frames.tb_frame.f_code.co_filename == "<string>":
            frames = frames.tb_next
        lines = traceback.format_exception(type(error), error, frames)
        sys.stderr.write("".join(lines))

    def compiled(source, filename):
        """The statements, and the last expression if the cell ends with one."""
        import ast

        tree = compile(source, filename, "exec", ast.PyCF_ONLY_AST)
        last = None
        if tree.body and isinstance(tree.body[-1], ast.Expr) and not source.rstrip().endswith(";"):
            last = compile(ast.Expression(tree.body.pop().value), filename, "eval", dont_inherit=True)
        return compile(tree, filename, "exec", dont_inherit=True), last

    def remember(source, filename):
        import linecache

        linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)

    def run(source):
        state["cell"] += 1
        filename = "<cell %d>" % state["cell"]
        remember(source, filename)
        code = 0
        state["running"] = True
        try:
            statements, last = compiled(source, filename)
            exec(statements, namespace)
            if last is not None:
                display_last(eval(last, namespace))
            show_figures()
        except SystemExit as error:
            if isinstance(error.code, int):
                code = error.code
            elif error.code is not None:
                sys.stderr.write(str(error.code) + "\n")
                code = 1
        except BaseException as error:
            show_traceback(error, filename)
        finally:
            state["running"] = False
        return code & 0xFF

    def complete(request):
        import keyword
        import re

        line = request.get("line")
        text = line[: request.get("col", len(line))] if isinstance(line, str) and line else request.get("code") or ""
        word = re.search(r"[\w.]*$", text).group()
        if "." in word:
            owner, _, prefix = word.rpartition(".")
            if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", owner):
                return []
            value = eval(owner, dict(namespace))
            return sorted(owner + "." + name for name in dir(value) if name.startswith(prefix))
        names = set(keyword.kwlist) | set(dir(builtins)) | set(namespace)
        return sorted(name for name in names if name.startswith(word) and not name.startswith("_bai"))

    builtins.input = read_input
    builtins.display = display

    class PatchGetpass:
        """Makes getpass() ours, as soon as somebody imports it."""

        def find_spec(self, name, path, target=None):
            if name != "getpass":
                return None
            sys.meta_path.remove(self)
            import getpass

            getpass.getpass = read_password
            import importlib.machinery

            class Loaded:
                def create_module(self, spec):
                    return getpass

                def exec_module(self, module):
                    pass

            return importlib.machinery.ModuleSpec(name, Loaded())

    sys.meta_path.insert(0, PatchGetpass())

    import signal

    def on_interrupt(number, frame):
        # Between runs there is nothing to interrupt.
        if state["running"]:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, on_interrupt)
    # Compiling once loads what every cell needs.
    compiled("0", "<warm-up>")
    while True:
        line = commands.readline()
        if not line:
            break
        command = json.loads(line)
        if "code" in command:
            try:
                code = run(command["code"])
            except KeyboardInterrupt:
                code = 0
            tell({"done": code})
        elif "complete" in command:
            try:
                names = complete(command["complete"] or {})
            except Exception:
                names = []
            tell({"completions": names})


_bai_main()
