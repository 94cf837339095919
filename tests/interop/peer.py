"""The other side of bai's ZeroMQ transport, made of aiozmq and pyzmq as 19.06 is.

Each role prints one line when it is ready, and then what it sees. Run by crates/bai-proto/tests/zmq/interop.rs.
"""

import asyncio
import concurrent.futures
import sys

import aiozmq.rpc
import msgpack
import zmq

KERNEL = "0b31a1e2-9d2c-4b3a-9c1a-1d2f3a4b5c6d"


def say(*words):
    print(*words, flush=True)


class InsufficientResource(Exception):
    pass


InsufficientResource.__module__ = "ai.backend.agent.exception"


class Agent(aiozmq.rpc.AttrHandler):
    """What a 19.06 agent publishes, with answers made up from the arguments."""

    @aiozmq.rpc.method
    def ping(self, msg: str):
        return msg

    @aiozmq.rpc.method
    async def create_kernel(self, kid: str, config: dict) -> dict:
        say("create", config["image"]["canonical"], config["resource_slots"]["mem"], config["mounts"])
        return {
            "id": kid,
            "kernel_host": "",
            "repl_in_port": 30000,
            "repl_out_port": 30001,
            "stdin_port": 0,
            "stdout_port": 0,
            "service_ports": [
                {"name": "jupyter", "protocol": "http", "container_port": 8080, "host_port": 30002}
            ],
            "container_id": "c0ffee",
            "resource_spec": "{}",
            "attached_devices": {},
        }

    @aiozmq.rpc.method
    async def destroy_kernel(self, kid: str):
        return {"mem": {"current": "1", "pct": None}, "version": 2} if kid == KERNEL else None

    @aiozmq.rpc.method
    async def execute(
        self,
        api_version: int,
        kid: str,
        run_id,
        mode: str,
        code: str,
        opts: dict,
        flush_timeout,
    ) -> dict:
        if code == "none":
            return None
        if code == "timeout":
            raise concurrent.futures.TimeoutError
        if code == "custom":
            raise InsufficientResource("not enough", "cpu", "cpu", "8", "2")
        if code == "key":
            raise KeyError(kid)
        if code == "exit":
            say("exits")
            sys.exit(0)
        return {
            "runId": run_id,
            "status": "finished",
            "exitCode": 0,
            "options": None,
            "console": [["stdout", code], ["media", ["image/png", "data:"]]],
            "files": [],
        }

    @aiozmq.rpc.method
    async def upload_file(self, kid: str, filename: str, filedata: bytes):
        say("upload", filename, len(filedata))

    @aiozmq.rpc.method
    async def download_file(self, kid: str, filepath: str):
        return b"\0tar\xff" * 100000

    @aiozmq.rpc.method
    async def get_logs(self, kid: str):
        return {"logs": "\u2603\r\n"}

    @aiozmq.rpc.method
    async def reset_agent(self):
        say("reset")


async def agent(address):
    server = await aiozmq.rpc.serve_rpc(Agent(), bind=address)
    server.transport.setsockopt(zmq.LINGER, 200)
    say("ready", next(iter(server.transport.bindings())))
    await server.wait_closed()


async def manager(address):
    client = await aiozmq.rpc.connect_rpc(
        connect=address,
        error_table={"concurrent.futures._base.TimeoutError": concurrent.futures.TimeoutError},
    )
    client.transport.setsockopt(zmq.LINGER, 1000)
    call = client.call
    assert await call.ping("\u2603") == "\u2603"
    config = {
        "image": {
            "registry": {"name": "index.docker.io", "url": "https://registry-1.docker.io"},
            "digest": "sha256:abc",
            "canonical": "index.docker.io/lablup/python:3.6",
            "labels": {"ai.backend.kernelspec": "1"},
        },
        "resource_slots": {"cpu": "1E+1", "mem": "268435456", "cuda.device": "0"},
        "idle_timeout": 3600,
        "mounts": [("data", "local", "00" * 16, "rw"), ("old", "local", "11" * 16)],
        "environ": {"A": "b"},
    }
    created = await call.create_kernel(KERNEL, config)
    assert created["id"] == KERNEL and created["container_id"] == "c0ffee", created
    assert created["repl_in_port"] == 30000 and created["service_ports"] in ([], ()), created
    del config["idle_timeout"]
    restarted = await call.restart_kernel(KERNEL, dict(config, mounts=[]))
    assert "id" not in restarted and restarted["repl_out_port"] == 30001, restarted
    reply = await call.execute(3, KERNEL, "r1", "query", "print", {}, 2.0)
    assert reply["console"] in ([["stdout", "print"]], (("stdout", "print"),)), reply
    reply = await call.execute(1, KERNEL, None, "query", "x", {}, None)
    assert (reply["stdout"], reply["runId"]) == ("x", "assigned"), reply
    await expect(TypeError, ("'NoneType' object is not iterable",), call.execute(3, KERNEL, "r", "query", "none", {}, 2))
    await expect(concurrent.futures.TimeoutError, (), call.execute(3, KERNEL, "r", "query", "timeout", {}, 2))
    await expect(RuntimeError, ("it's broken",), call.execute(3, KERNEL, "r", "query", "fail", {}, 2))
    await expect(KeyError, (KERNEL,), call.get_logs(KERNEL))
    await expect(aiozmq.rpc.ParametersError, None, call.execute(3, KERNEL, "", "query", "", {}, 2))
    await expect(aiozmq.rpc.ParametersError, None, call.upload_file(KERNEL, "a.txt", "text"))
    await expect(aiozmq.rpc.ParametersError, None, call.destroy_kernel())
    await expect(aiozmq.rpc.NotFoundError, ("anything",), call.anything(KERNEL))
    assert await call.upload_file(KERNEL, filename="a.txt", filedata=b"\1\2") is None
    assert await call.download_file(KERNEL, "a.txt") == b"\0tar\xff"
    assert (await call.list_files(KERNEL, "."))["abspath"] == "/home/work/\n"
    assert (await call.start_service(KERNEL, "jupyter", {}))["status"] == "started"
    assert (await call.destroy_kernel(KERNEL))["version"] == 2
    assert await call.clean_all_kernels("manager-freeze-force-kill") is None
    replies = await asyncio.gather(*[call.ping(str(number)) for number in range(500)])
    assert list(replies) == [str(number) for number in range(500)]
    client.close()
    await client.wait_closed()
    say("end")


async def expect(kind, args, call):
    try:
        result = await call
    except kind as error:
        assert args is None or error.args == args, error.args
    else:
        raise AssertionError("{} instead of {}".format(result, kind))


def compressed(data):
    """Snappy's block format; literals only where the library is missing."""
    try:
        import cramjam

        return bytes(cramjam.snappy.compress_raw(data))
    except ImportError:
        assert len(data) <= 60
        return bytes([len(data), (len(data) - 1) << 2]) + data


def push(address, agent_address):
    socket = zmq.Context.instance().socket(zmq.PUSH)
    socket.setsockopt(zmq.LINGER, 5000)
    socket.connect(address)
    images = msgpack.packb([["lablup/python:3.6", "sha256:0123abcd"]], use_bin_type=True)
    info = {
        "ip": "127.0.0.1",
        "region": "local",
        "addr": agent_address,
        "resource_slots": {"cpu": ("count", "8"), "mem": ("bytes", "16777216000")},
        "version": "19.06.0b1",
        "compute_plugins": {"cpu": {"version": "19.06.0b1"}},
        "images": compressed(images),
        "scaling_group": "default",
    }
    for name, args in [
        ("instance_heartbeat", (info,)),
        ("instance_started", ()),
        ("kernel_pulling", (KERNEL, "index.docker.io/lablup/python:3.6")),
        ("kernel_terminated", (KERNEL, "self-terminated", None)),
        ("instance_terminated", ("shutdown",)),
    ]:
        packed = msgpack.packb(args, use_bin_type=True)
        socket.send_multipart([name.encode(), b"i-python", packed])
    socket.close()
    zmq.Context.instance().term()
    say("end")


def decompressed(data):
    import cramjam

    return bytes(cramjam.snappy.decompress_raw(data))


def pull():
    socket = zmq.Context.instance().socket(zmq.PULL)
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    say("ready", "tcp://127.0.0.1:{}".format(port))
    while True:
        name, agent, args = socket.recv_multipart()
        args = msgpack.unpackb(args, raw=False, use_list=False)
        if name == b"instance_heartbeat":
            (info,) = args
            try:
                images = msgpack.unpackb(decompressed(info["images"]), raw=False, use_list=False)
            except ImportError:
                images = "?"
            args = (info["ip"], info["addr"], sorted(info["resource_slots"].items()), images)
        say(name.decode(), agent.decode(), args)
        if name == b"instance_terminated":
            return


def terminal():
    """The runner's end: what is typed is printed in capitals."""
    context = zmq.Context.instance()
    typed, printed = context.socket(zmq.SUB), context.socket(zmq.PUB)
    typed.setsockopt(zmq.SUBSCRIBE, b"")
    ports = [socket.bind_to_random_port("tcp://127.0.0.1") for socket in (typed, printed)]
    say("ready", *ports)
    while True:
        printed.send(typed.recv().upper())


def gateway(typed_port, printed_port):
    """A gateway's end: types until something is printed."""
    context = zmq.Context.instance()
    typed, printed = context.socket(zmq.PUB), context.socket(zmq.SUB)
    typed.connect("tcp://127.0.0.1:" + typed_port)
    printed.setsockopt(zmq.SUBSCRIBE, b"")
    printed.connect("tcp://127.0.0.1:" + printed_port)
    while not printed.poll(20):
        typed.send(b"ls\n")
    say(printed.recv())
    say("end")


def pinger(address):
    """A PUSH whose libzmq asks every 100 ms whether the other end is there, and gives it two seconds to answer."""
    socket = zmq.Context.instance().socket(zmq.PUSH)
    socket.setsockopt(zmq.HEARTBEAT_IVL, 100)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 2000)
    monitor = socket.get_monitor_socket()
    socket.connect(address)
    socket.send_multipart([b"kernel_started", b"i-python", msgpack.packb([KERNEL])])
    # Long enough for the first of them to go unanswered.
    for _ in range(40):
        if monitor.poll(100):
            event = int.from_bytes(monitor.recv_multipart()[0][:2], "little")
            assert event != zmq.EVENT_DISCONNECTED, "a ping was not answered"
    say("end")


def run(coroutine):
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    loop.run_until_complete(coroutine)


if __name__ == "__main__":
    role, rest = sys.argv[1], sys.argv[2:]
    if role in ("agent", "manager"):
        run(globals()[role](*rest))
    else:
        globals()[role](*rest)
