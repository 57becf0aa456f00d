"""Workers: what dies, what is tried again, and who may talk to them."""

import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import let_workers_import

from pipelines import runner
from pipelines.runner import Outcome, PlannedShard, ahead, attempt

SHARDS = [PlannedShard(name, "scene", name, 1, 0) for name in ("first", "deadly", "faulty", "last")]


@dataclass
class Work:
    """A row per shard with the process that made it; one shard kills its worker, one always fails."""

    folder: Path

    def __call__(self, loaded, shards) -> Outcome:
        return attempt(self.rows(loaded, shards))

    def rows(self, loaded, shards):
        for shard in shards:
            with (self.folder / shard.shard_id).open("a") as tries:
                tries.write("x")
            if shard.shard_id == "deadly":
                os.kill(os.getpid(), signal.SIGKILL)
            if shard.shard_id == "faulty":
                raise RuntimeError("injected")
            yield {"shard_id": shard.shard_id, "loaded": loaded, "gpu": os.environ.get("CUDA_VISIBLE_DEVICES")}


def listening() -> set[str]:
    """Addresses at which this process and its children listen."""
    import psutil

    me = psutil.Process()
    sockets = [socket for process in (me, *me.children(recursive=True)) for socket in process.net_connections("inet")]
    return {socket.laddr.ip.removeprefix("::ffff:") for socket in sockets if socket.status == psutil.CONN_LISTEN}


def test_gpu_workers_die_for_one_shard_alone_and_talk_to_nobody_else(tmp_path, monkeypatch):
    """On a Ray of our own that is told of a GPU: the loopback interface alone, and a token."""
    import grpc

    monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", '{"GPU": 1}')
    let_workers_import(monkeypatch, __file__)  # Work
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # which does not open the job's own Ray
    loads = []

    def load(scene: str) -> str:
        loads.append(scene)
        return f"{scene}, loaded"

    rows, errors = [], {}
    for shards, outcome in runner.outcomes(SHARDS, load, Work(tmp_path), workers=1, on_gpus=True):
        rows += outcome.rows
        if outcome.error:
            errors |= {shard.shard_id: outcome.error for shard in shards}
        if shards == [SHARDS[-1]]:
            import ray  # not before the job: it sets what Ray reads as it is imported

            assert listening() == {"127.0.0.1"}
            with grpc.insecure_channel(ray.get_runtime_context().gcs_address) as channel:
                ask = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetAllNodeInfo")
                with pytest.raises(grpc.RpcError) as refused:
                    ask(b"", timeout=30)
            assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert sorted(row["shard_id"] for row in rows) == ["first", "last"]
    assert {(row["loaded"], row["gpu"]) for row in rows} == {("scene, loaded", "0")}
    assert errors.keys() == {"deadly", "faulty"}
    assert "Died" in errors["deadly"] and errors["faulty"] == "RuntimeError: injected"
    assert len((tmp_path / "deadly").read_text()) == runner.TRIES
    assert len((tmp_path / "faulty").read_text()) == runner.TRIES - 1  # not reached in the first task
    assert loads == ["scene"]


def test_ahead_keeps_the_order_and_never_holds_more_than_it_says():
    taken, lock, most = 0, threading.Lock(), 0

    def items():
        nonlocal taken
        for i in range(20):
            with lock:
                taken += 1
            yield i

    def square(i: int) -> int:
        time.sleep(0.001 * (i % 3))  # later ones overtake
        return i * i

    results = []
    for result in ahead(square, items(), 3):
        results.append(result)
        most = max(most, taken - len(results))
    assert results == [i * i for i in range(20)] and most == 3


@pytest.mark.parametrize("n", [0, 1, 3])
def test_ahead_hands_over_what_was_done_before_an_error(n):
    def items():
        yield from range(3)
        raise RuntimeError("of the items")

    results = ahead(str, items(), n)
    assert [next(results) for _ in range(3)] == ["0", "1", "2"]
    with pytest.raises(RuntimeError, match="of the items"):
        next(results)
    inverses = ahead(lambda x: 1 / x, [1, 2, 0, 4], n)
    assert [next(inverses) for _ in range(2)] == [1, 0.5]
    with pytest.raises(ZeroDivisionError):
        next(inverses)
