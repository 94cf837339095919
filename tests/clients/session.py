"""Drives an installed backend.ai client through the life of a session and prints a line for each case.

    BACKEND_ENDPOINT=... BACKEND_ACCESS_KEY=... BACKEND_SECRET_KEY=... \\
        python session.py --client VENV/bin/backend.ai --generation 23.9.10 --scratch DIR

Lines: `ok <case>`, `FAILED <case>: <why>`, and `end` as the last one. Runs on any Python from 3.6 on, without packages.
What is called differently in the generations of the client is in WORDS; the cases are the same.
"""

import argparse
import os
import socket
import subprocess
import sys
import time
import urllib.request

# The command for each act; {s} is the session's name.
WORDS = {
    "19.6.0b2": {
        "start": ["start", "-t", "{s}"],
        "ls": ["ls", "{s}", "."],
        "upload": ["upload", "{s}"],
        "download": ["download", "{s}"],
        "logs": ["logs", "{s}"],
        "app": ["app", "{s}", "{service}", "-p", "{port}"],
        "terminate": ["terminate", "{s}"],
        "run-name": "-t",
        "started": "{s} is created and ready",
        "listed": ["data.txt", "/home/work"],
    },
    "23.9.10": {
        "start": ["session", "create", "--name", "{s}"],
        "ls": ["session", "ls", "{s}", "."],
        "upload": ["session", "upload", "{s}"],
        "download": ["session", "download", "{s}"],
        "logs": ["session", "logs", "{s}"],
        "app": ["app", "{s}", "{service}", "-b", "127.0.0.1:{port}"],
        "terminate": ["session", "destroy", "{s}"],
        "run-name": "--name",
        # It prints the id that servers of its own time give, and None with ours.
        "started": "is created and ready",
        "listed": ["data.txt"],
    },
}

TIMEOUT = 60


class Failure(Exception):
    pass


class Driver:
    def __init__(self, client, generation, scratch):
        self.client = client
        self.words = WORDS[generation]
        self.here = os.path.join(scratch, "files")
        os.makedirs(self.here, exist_ok=True)
        self.environ = dict(os.environ, HOME=scratch, LANG="C.UTF-8", LC_ALL="C.UTF-8", COLUMNS="200")
        self.failed = False

    def call(self, *words):
        """Exit code, stdout and stderr of the client."""
        child = subprocess.Popen(
            [self.client] + list(words),
            cwd=self.here,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            out, err = child.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            child.kill()
            out, err = child.communicate()
            raise Failure("no end within %d s: %r %r" % (TIMEOUT, out, err))
        return child.returncode, out.decode("utf-8", "replace"), err.decode("utf-8", "replace")

    def begin(self, act, session, service, port):
        """A command of the client that goes on."""
        return subprocess.Popen(
            [self.client] + [word.format(s=session, service=service, port=port) for word in self.words[act]],
            cwd=self.here,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def act(self, act, session, *more):
        return self.call(*[word.format(s=session) for word in self.words[act]] + list(more))

    def case(self, name, steps):
        try:
            steps()
        except (Failure, OSError, KeyError) as why:
            self.failed = True
            print("FAILED %s: %s" % (name, " ".join(str(why).split())))
        else:
            print("ok %s" % name)

    def file(self, name, text):
        with open(os.path.join(self.here, name), "w") as target:
            target.write(text)


def expect(answer, code=0, stdout=None, contains=()):
    """Compares an answer of `call`; `contains` may be on either stream."""
    shown = "exit %d, stdout %r, stderr %r" % answer
    if answer[0] != code:
        raise Failure("expected exit %d, got %s" % (code, shown))
    if stdout is not None and answer[1] != stdout:
        raise Failure("expected stdout %r, got %s" % (stdout, shown))
    for part in contains:
        if part not in answer[1] + answer[2]:
            raise Failure("expected %r somewhere, got %s" % (part, shown))


def cases(driver):
    name = "client-%d" % os.getpid()
    run_name = driver.words["run-name"]

    def run_code():
        expect(driver.call("run", "--rm", "python", "-c", "print(6*7)"), contains=["42\n"])

    def run_quietly():
        expect(driver.call("run", "-q", "--rm", "python", "-c", "print(6*7)"), stdout="42\n")

    def run_error():
        answer = driver.call("run", "-q", "--rm", "python", "-c", "1/0")
        expect(answer, code=answer[0], contains=["ZeroDivisionError"])

    def run_batch():
        driver.file("main.py", "import sys\nprint('from a file', sys.version_info[0])\n")
        answer = driver.call("run", "--rm", "--exec", "python3 main.py", "python", "main.py")
        expect(answer, contains=["from a file 3"])

    def start():
        answer = driver.act("start", name, "python")
        expect(answer, contains=[driver.words["started"].format(s=name)])

    def start_again():
        expect(driver.act("start", name, "python"), contains=["already running"])

    def state():
        expect(driver.call("run", "-q", run_name, name, "python", "-c", "kept = 11"), stdout="")
        expect(driver.call("run", "-q", run_name, name, "python", "-c", "print(kept * 2)"), stdout="22\n")

    def upload():
        driver.file("data.txt", "to the session and back\n")
        expect(driver.act("upload", name, "data.txt"))
        answer = driver.call("run", "-q", run_name, name, "python", "-c", "print(open('data.txt').read(), end='')")
        expect(answer, stdout="to the session and back\n")

    def ls():
        expect(driver.act("ls", name), contains=driver.words["listed"])

    def download():
        driver.call("run", "-q", run_name, name, "python", "-c", "open('made.txt', 'w').write('made inside\\n')")
        folder = os.path.join(driver.here, "down")
        os.makedirs(folder, exist_ok=True)
        expect(driver.act("download", name, "made.txt", "--dest", folder))
        found = [os.path.join(base, f) for base, _, files in os.walk(folder) for f in files if f == "made.txt"]
        if len(found) != 1 or open(found[0]).read() != "made inside\n":
            raise Failure("made.txt did not arrive: %r" % found)

    def logs():
        expect(driver.act("logs", name))

    def app():
        code = (
            "import http.server, threading; "
            "s = http.server.HTTPServer(('127.0.0.1', 8000), http.server.SimpleHTTPRequestHandler); "
            "threading.Thread(target=s.serve_forever, daemon=True).start()"
        )
        expect(driver.call("run", "-q", run_name, name, "python", "-c", code))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        child = driver.begin("app", name, "web", port=port)
        try:
            deadline = time.monotonic() + TIMEOUT
            while True:
                try:
                    page = urllib.request.urlopen("http://127.0.0.1:%d/data.txt" % port, timeout=TIMEOUT).read()
                    break
                except OSError as why:
                    if child.poll() is not None or time.monotonic() > deadline:
                        raise Failure("the app cannot be reached: %s" % why)
                    time.sleep(0.1)
        finally:
            child.terminate()
            out, _ = child.communicate()
        if page != b"to the session and back\n":
            raise Failure("the app answered %r; the client said %r" % (page, out))

    def terminate():
        expect(driver.act("terminate", name), contains=["Done"])

    def gone():
        answer = driver.act("logs", name)
        if answer[0] == 0:
            raise Failure("the logs of a terminated session: exit %d, %r %r" % answer)

    driver.case("run -c", run_code)
    driver.case("run -q -c", run_quietly)
    driver.case("run: an error is shown", run_error)
    driver.case("run with a file", run_batch)
    driver.case("start", start)
    try:
        driver.case("start of a running session", start_again)
        driver.case("run in a running session keeps its state", state)
        driver.case("upload", upload)
        driver.case("ls", ls)
        driver.case("download", download)
        driver.case("logs", logs)
        driver.case("app", app)
    finally:
        driver.case("terminate", terminate)
    driver.case("a terminated session is gone", gone)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--client", required=True)
    parser.add_argument("--generation", required=True, choices=sorted(WORDS))
    parser.add_argument("--scratch", required=True)
    options = parser.parse_args()
    driver = Driver(options.client, options.generation, options.scratch)
    cases(driver)
    print("end")
    return 1 if driver.failed else 0


if __name__ == "__main__":
    sys.exit(main())
