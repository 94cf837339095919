# Drives a Python interpreter for query mode. Commands arrive on descriptor 3, events leave on 4, both as WORD ARGUMENT
# LENGTH, a newline, and that many bytes; stdout and stderr are the user's. Little is imported at the start: the time to the
# first answer is the user's time. Works from Python 3.7 on.
def _bai_main():
    import _signal
    import _thread
    import builtins
    import io
    import os
    import select
    import sys

    COMMANDS, EVENTS = 3, 4
    namespace = sys.modules["__main__"].__dict__
    for name in ("_bai_main", "sys"):
        namespace.pop(name, None)
    namespace["__builtins__"] = builtins
    sys.argv[:] = [""]
    sys.path.insert(0, "")
    for fd in (COMMANDS, EVENTS):
        os.set_inheritable(fd, False)
    cells = questions = 0
    is_running = is_child = False
    main_thread = _thread.get_ident()

    # --- Interrupts: raised in the user's code, never in the middle of a message of ours.

    is_shielded = is_pending = False

    def on_interrupt(number, frame):
        nonlocal is_pending
        if is_shielded:
            is_pending = is_running
        elif is_running:
            raise KeyboardInterrupt

    def shielded(action, *arguments):
        nonlocal is_shielded, is_pending
        if is_shielded or _thread.get_ident() != main_thread:
            return action(*arguments)
        is_shielded = True
        try:
            return action(*arguments)
        finally:
            is_shielded = False
            if is_pending:
                is_pending = False
                raise KeyboardInterrupt

    # --- Messages.

    received = bytearray()
    telling = _thread.allocate_lock()

    def take():
        end = received.find(b"\n")
        if end < 0:
            return None
        word, argument, length = received[:end].decode().split(" ")
        stop = end + 1 + int(length)
        if len(received) < stop:
            return None
        text = received[end + 1 : stop].decode("utf-8", "replace")
        del received[:stop]
        return word, argument, text

    def read_more():
        chunk = os.read(COMMANDS, 1 << 16)
        if not chunk:
            # Nobody is left to work for.
            os._exit(0)
        received.extend(chunk)

    def receive():
        while True:
            message = shielded(take)
            if message is not None:
                return message
            select.select([COMMANDS], [], [])
            shielded(read_more)

    def write(message):
        with telling:
            while message:
                message = message[os.write(EVENTS, message) :]

    def tell(word, argument, text=""):
        if is_child:
            return
        flush()
        data = text.encode("utf-8", "replace")
        shielded(write, b"%s %s %d\n" % (word.encode(), str(argument).encode(), len(data)) + data)

    # --- The user's streams.

    spare = [os.dup(1), os.dup(2)]

    def stream(fd, errors):
        raw = io.FileIO(fd, "w", closefd=False)
        return io.TextIOWrapper(io.BufferedWriter(raw), "utf-8", errors, line_buffering=True)

    def restore_streams():
        """Whatever the last cell closed."""
        for fd, name, errors in ((1, "stdout", sys.__stdout__.errors), (2, "stderr", "backslashreplace")):
            try:
                os.fstat(fd)
            except OSError:
                os.dup2(spare[fd - 1], fd)
            if getattr(getattr(sys, name), "closed", False):
                setattr(sys, name, stream(fd, errors))

    def flush():
        for output in (sys.stdout, sys.stderr):
            try:
                output.flush()
            except Exception:
                pass

    class Stdin(io.TextIOBase):
        """Asks the user for each line."""

        encoding = "utf-8"

        def readable(self):
            return True

        def readline(self, size=-1):
            return ask("input", "") + "\n"

        read = readline

    def ask(word, prompt):
        nonlocal questions
        if is_child or _thread.get_ident() != main_thread:
            raise EOFError("only the main thread of a run can ask for input")
        if prompt:
            sys.stdout.write(str(prompt))
        questions += 1
        tell(word, questions)
        while True:
            answered, number, text = receive()
            # An answer to a question that was interrupted is nobody's.
            if answered == "input" and int(number) == questions:
                return text[:-1] if text.endswith("\n") else text

    def read_input(prompt=""):
        """Read a line from the user. The trailing newline is stripped."""
        return ask("input", prompt)

    def read_password(prompt="Password: ", stream=None, **_):
        """Read a line from the user that is not shown."""
        return ask("password", prompt)

    # --- Values that are shown.

    KINDS = (
        ("text/html", "_repr_html_"),
        ("image/svg+xml", "_repr_svg_"),
        ("image/png", "_repr_png_"),
        ("image/jpeg", "_repr_jpeg_"),
    )

    def rendered(value, method):
        """What a method of the value returns; None without it or when it fails."""
        try:
            result = getattr(value, method)()
        except Exception:
            return None
        return result[0] if isinstance(result, tuple) else result

    def rich(value):
        """MIME type and data; None if it has only a repr."""
        if isinstance(value, type) or is_child:
            return None
        bundle = rendered(value, "_repr_mimebundle_")
        if isinstance(bundle, dict):
            for mime, _ in KINDS:
                if bundle.get(mime):
                    return mime, bundle[mime]
        for mime, method in KINDS:
            data = rendered(value, method)
            if data is not None:
                return mime, data
        return None

    def show(value, end):
        found = rich(value)
        if found is None:
            sys.stdout.write(repr(value) + end)
        else:
            tell_media(*found)

    def tell_media(mime, data):
        if isinstance(data, (bytes, bytearray)):
            import binascii

            data = binascii.b2a_base64(data, newline=False).decode()
        tell(*(("html", "-") if mime == "text/html" else ("media", mime)), str(data))

    def display(*values, **_):
        """Show values as richly as they can be."""
        for value in values:
            show(value, "\n")

    def show_figures():
        pyplot = sys.modules.get("matplotlib.pyplot")
        if pyplot is None:
            return
        try:
            for number in pyplot.get_fignums():
                data = io.BytesIO()
                pyplot.figure(number).savefig(data, format="png", bbox_inches="tight")
                tell_media("image/png", data.getvalue())
        finally:
            pyplot.close("all")

    # --- Cells.

    def show_traceback(error):
        import traceback

        shown = traceback.TracebackException(type(error), error, error.__traceback__)
        waiting, seen = [shown], set()
        while waiting:
            part = waiting.pop()
            if part is None or id(part) in seen:
                continue
            seen.add(id(part))
            # Without our own frames.
            if part.stack is not None:
                part.stack[:] = [frame for frame in part.stack if frame.filename != "<bai>"]
            waiting += [part.__cause__, part.__context__, *(getattr(part, "exceptions", None) or ())]
        sys.stderr.write("".join(shown.format()))

    def compiled(source, filename):
        """The statements, and the last expression if the cell ends with one."""
        import _ast

        tree = compile(source, filename, "exec", _ast.PyCF_ONLY_AST, True)
        last = None
        if tree.body and isinstance(tree.body[-1], _ast.Expr) and not source.rstrip().endswith(";"):
            last = compile(_ast.Expression(tree.body.pop().value), filename, "eval", 0, True)
        return compile(tree, filename, "exec", 0, True), last

    # As `linecache` keeps them: tracebacks find the source of cells there.
    sources = {}

    def patch_linecache(module):
        module.cache.update(sources)
        sources.clear()

    def run_cell(source):
        filename = "<cell %d>" % cells
        sources[filename] = len(source), None, source.splitlines(True), filename
        if "linecache" in sys.modules:
            patch_linecache(sys.modules["linecache"])
        statements, last = compiled(source, filename)
        exec(statements, namespace)
        if last is not None:
            value = eval(last, namespace)
            if value is not None:
                builtins._ = value
                show(value, "")

    def guarded(action, *arguments):
        """The exit code of what the user's code does."""
        try:
            action(*arguments)
        except SystemExit as error:
            if error.code is None or isinstance(error.code, int):
                return (error.code or 0) & 0xFF
            sys.stderr.write(str(error.code) + "\n")
            return 1
        except BaseException as error:
            show_traceback(error)
        return 0

    def run(source):
        nonlocal cells, is_running
        cells += 1
        code = 0
        try:
            is_running = True
            code = guarded(run_cell, source)
            guarded(show_figures)
            flush()
        except BaseException:
            # An interrupt of what we did for the user.
            pass
        finally:
            is_running = False
        return code

    # --- Completion.

    def names_after(text):
        import re

        word = re.search(r"[\w.]*$", text).group()
        owner, dot, prefix = word.rpartition(".")
        if dot:
            if not re.match(r"[^\W\d]\w*(\.[^\W\d]\w*)*$", owner):
                return []
            found = {str(name) for name in dir(eval(owner, namespace))}
        else:
            import keyword

            found = set(keyword.kwlist) | set(dir(builtins)) | {str(name) for name in namespace}
        if not prefix.startswith("_"):
            found = {name for name in found if not name.startswith("_")}
        return sorted(owner + dot + name for name in found if name.startswith(prefix))

    def complete(text):
        nonlocal is_running
        names = []
        try:
            is_running = True
            names = names_after(text)
        except BaseException:
            pass
        finally:
            is_running = False
        return names

    # --- Modules that are made ours when somebody imports them.

    def patch_getpass(module):
        module.getpass = read_password

    def patch_ipython(module):
        module.display = display

    patches = {
        "getpass": patch_getpass,
        "IPython.core.display_functions": patch_ipython,
        "linecache": patch_linecache,
    }

    class Patching:
        def find_spec(self, name, path, target=None):
            patch = patches.get(name)
            if patch is None:
                return None
            from importlib.machinery import PathFinder

            spec = PathFinder.find_spec(name, path)
            if spec is not None and spec.loader is not None:
                load = spec.loader.exec_module

                def exec_module(module):
                    load(module)
                    patch(module)

                spec.loader.exec_module = exec_module
            return spec

    def forget_everything():
        nonlocal is_child
        is_child = True
        for fd in (COMMANDS, EVENTS):
            os.close(fd)

    sys.meta_path.insert(0, Patching())
    for name, patch in patches.items():
        if name in sys.modules:
            patch(sys.modules[name])
    os.register_at_fork(after_in_child=forget_everything)
    _signal.signal(_signal.SIGINT, on_interrupt)
    sys.stdout = sys.__stdout__ = stream(1, sys.__stdout__.errors)
    sys.stderr = sys.__stderr__ = stream(2, "backslashreplace")
    sys.stdin = sys.__stdin__ = Stdin()
    builtins.input = read_input
    builtins.display = display
    # Once, so that the first cell finds everything loaded.
    compiled("0", "<bai>")
    while True:
        word, _, text = receive()
        if word == "code":
            restore_streams()
            code = run(text)
            if is_child:
                flush()
                os._exit(code)
            tell("done", code)
        elif word == "complete":
            tell("completions", "-", "\n".join(complete(text)))


_bai_main()
