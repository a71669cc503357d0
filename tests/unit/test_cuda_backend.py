"""Training with backend "cuda" where there is no GPU: what Python does with a device's arrays."""

from __future__ import annotations

import sys
from typing import Any

import fake_cupy
import numpy as np
import pytest
from fake_device import cpu_kernels, device

import plait
from plait import backend, data, models, optim, train
from plait.comm.alone import Alone
from plait.comm.transport import PeerFailed
from plait.errors import UserError
from plait.mesh import Layout
from plait.train import config as train_config
from plait.train.build import build_dataset, build_model
from plait.train.device import Shares, device_shares, shared_room, take_backend
from plait.train.digest import state_digest
from plait.train.settings import Settings
from plait.train.setup import Here, check_memory

TEXT = data.synthetic(samples=40, vocabulary=50, sequence_length=12, seed=3)
IMAGES = data.synthetic(samples=40, input_shape=(8, 8, 3), classes=5, seed=3)

MODELS: dict[str, Any] = {
    "gpt": lambda: models.gpt(
        layers=2, hidden_dim=16, heads=2, vocabulary=50, sequence_length=12, dropout=0.1
    ),
    "llama": lambda: models.llama(
        layers=2, hidden_dim=16, heads=4, kv_heads=2, vocabulary=50, sequence_length=12
    ),
    "resnet": lambda: models.resnet(input_shape=(8, 8, 3), classes=5, blocks=(1, 1), width=4),
    "vit": lambda: models.vit(
        input_shape=(8, 8, 3), classes=5, layers=1, hidden_dim=16, heads=2, patch=4
    ),
    "mlp": lambda: models.mlp(input_shape=(8, 8, 3), classes=5, hidden_dim=8, layers=2),
}


def trained(model: str, backend: str, **changes: Any) -> tuple[str, list[float]]:
    """The digest of the state after three steps, and each loss; then the evaluation's."""
    known: dict[str, Any] = {"batch": 8, "microbatch": 3, "clip": 1.0, "seed": 5, "check_every": 2}
    trainer = train.Trainer(
        MODELS[model](),
        TEXT if model in ("gpt", "llama") else IMAGES,
        mesh=plait.Mesh(),
        optimizer=optim.AdamW(learning_rate=1e-2) if model != "mlp" else optim.SGD(),
        backend=backend,  # type: ignore[arg-type]
        **{**known, **changes},
    )
    losses = [step.loss for step in trainer.steps(4)]
    on_device = [not isinstance(x, np.ndarray) for x in trainer.engine.master.values()]
    assert all(on_device) if backend == "cuda" else not any(on_device)
    losses.append(trainer.evaluate(trainer.dataset, batches=1).loss)
    return state_digest(trainer.engine), losses


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("gpt", {}),
        ("gpt", {"precision": "float32", "zero": 1, "recompute": "layer"}),
        ("llama", {}),
        ("resnet", {}),
        ("vit", {}),
        ("mlp", {}),
    ],
)
def test_device_arrays_change_no_bits(model: str, changes: dict[str, Any]) -> None:
    """The CPU's kernels on device arrays: nothing is computed elsewhere, nothing left behind."""
    expected = trained(model, "cpu", **changes)
    with device(cpu_kernels()):
        got = trained(model, "cuda", **changes)
    assert got == expected


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_recorded_step_changes_no_bits(dropout: float, masked: bool) -> None:
    """From its third time on a step is launched as a graph, unless its passes differ from step to
    step: with dropout never, with another number of targets that step is run as it is."""

    def losses(backend: Any) -> tuple[str, list[float]]:
        layers = models.gpt(
            layers=2, hidden_dim=16, heads=2, vocabulary=50, sequence_length=12, dropout=dropout
        )
        trainer = train.Trainer(
            layers, TEXT, mesh=plait.Mesh(), optimizer=optim.AdamW(learning_rate=1e-2), batch=8,
            microbatch=3, seed=5, backend=backend,
        )  # fmt: skip
        engine, found = trainer.engine, []
        for step in range(8):
            inputs, targets = TEXT.batch(np.arange(8) + 3 * step)
            if masked and step == 5:
                targets = targets.copy()
                targets[0, :4] = -1
            found.append(engine.step(step, 1e-2, inputs, targets).loss)
        return state_digest(engine), found

    TEXT.prepare(Alone())
    expected = losses("cpu")
    with device(cpu_kernels()):
        before = fake_cupy.Graph.launches
        assert losses("cuda") == expected
        launches = fake_cupy.Graph.launches - before
    assert launches == (0 if dropout else 3 if masked else 6)


def test_checkpoints_cross_backends(tmp_path: Any) -> None:
    """What a device saved, the host goes on from, and the other way round, with the same bits."""

    def run(steps: int, name: str) -> str:
        # "auto": the device, where one is
        trainer = train.Trainer(
            MODELS["gpt"](), TEXT, mesh=plait.Mesh(), optimizer=optim.AdamW(), batch=8, seed=5,
            run=tmp_path / name, other_bits=True,
        )  # fmt: skip
        with trainer:
            list(trainer.steps(steps))
            trainer.save()
            return state_digest(trainer.engine)

    expected = run(2, "host")
    with device(cpu_kernels()):
        run(1, "there")
    assert run(2, "there") == expected
    run(1, "back")
    with device(cpu_kernels()):
        assert run(2, "back") == expected


def test_fingers_off() -> None:
    """The stand-in for CuPy refuses what would copy to the host unseen."""
    with device(cpu_kernels()):
        backend.use("cuda")
        x = fake_cupy.empty((2, 3), np.float32)
        with pytest.raises(TypeError, match="implicit"):
            np.asarray(x)


def raises(text: str) -> Any:
    def call(*_: object, **__: object) -> int:
        raise RuntimeError(text)

    return call


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"driver": 0}, "there is no NVIDIA driver here"),
        ({"driver": 12040}, "the driver knows CUDA 12.4, plait was built for 13.0: install a dri"),
        ({"cupy": None}, "needs CuPy 14 or later, which cannot be imported .*plait.cuda13."),
        ({"version": "13.6.0"}, "needs CuPy 14 or later for bfloat16, found 13.6.0: pip install"),
        ({"count": raises("cudaErrorNoDevice: no CUDA-capable device")}, "but no visible device: "),
        ({"count": raises("unknown error")}, r"CuPy 14\.0\.0 does not work with this driver"),
        ({"stream": raises("devices busy")}, "device 0, cannot be used: devices busy; another pro"),
        ({"count": lambda: 0}, "there is a driver but no visible device: look at CUDA_VISIBLE_DEV"),
        ({"capability": (7, 5)}, "fibers of a CPU has compute capability 7.5, needed is 8.0"),
        ({"built": False}, "this plait was built for the CPU only; build it with CUDA 13"),
    ],
)
def test_what_is_missing(
    changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line says what is there and what to install, and the CPU stays in use."""
    kernels = cpu_kernels()
    kernels.driver_version = lambda: changes.get("driver", 13000)
    major, minor = changes.get("capability", (8, 0))
    about = {"name": b"fibers of a CPU", "major": major, "minor": minor}
    runtime = fake_cupy.cuda.runtime
    monkeypatch.setattr(runtime, "getDeviceProperties", lambda _: about)
    monkeypatch.setattr(runtime, "getDeviceCount", changes.get("count", lambda: 1))
    if "stream" in changes:
        monkeypatch.setattr(fake_cupy.cuda, "Stream", changes["stream"])
    monkeypatch.setattr(fake_cupy, "__version__", changes.get("version", "14.0.0"))
    with device(kernels), monkeypatch.context() as patch:
        if "cupy" in changes:
            patch.setitem(sys.modules, "cupy", None)
        if not changes.get("built", True):
            patch.setitem(sys.modules, "plait._cuda", None)
        with pytest.raises(UserError, match=message) as caught:
            backend.use("cuda")
        assert "\n" not in str(caught.value)
        assert backend.name() == "cpu"
        text = take_backend("auto", Alone())
        assert text.startswith("cpu")
        assert ("not cuda: " in text) == changes.get("built", True)


def test_a_model_that_does_not_fit(tmp_path: Any) -> None:
    """The limit is that of the device, shared by the ranks that share it."""
    text = """
        model = {kind = "gpt", layers = 12, hidden_dim = 768, heads = 12, sequence_length = 1024}
        data = {kind = "synthetic", vocabulary = 50000}
        train = {steps = 1, batch = 8}
    """
    path = tmp_path / "gpt.toml"
    path.write_text(text)
    config = train_config.load(path)
    specs = build_model(config, build_dataset(config))
    with device(cpu_kernels()):
        backend.use("cuda")
        shares = device_shares(Alone())
        with pytest.raises(UserError, match=r"a rank, the limit is 1\.07 GB"):
            check_memory(config, specs, config.layout.resolve(1), Here(1, 1), shares.bytes)


GB = 1 << 30
FIRST, SECOND = ("0000:01:00.0", b"\1" * 16), ("0000:81:00.0", b"\2" * 16)


class Told(Alone):
    """A world in which the other ranks have these (host, device, bytes)."""

    def __init__(self, *others: tuple[str, str, int]) -> None:
        super().__init__()
        self.others = list(others)

    def all_gather_object(self, value: Any) -> list[Any]:
        return [value, *self.others]


@pytest.mark.parametrize(
    ("others", "ranks", "size"),
    [
        ([], 1, GB),
        ([("here", SECOND, GB)], 1, GB),  # each sees one of its own, as number 0
        ([("here", FIRST, GB)], 2, GB // 2),
        ([("there", FIRST, GB)], 1, GB),  # another host's, perhaps with the same name
        ([("here", FIRST, GB), *[("here", SECOND, GB)] * 3], 3, GB // 3),
        ([("here", ("0000:01:00.0", b"\3" * 16), GB)], 1, GB),  # two parts of one device
        ([("there", SECOND, GB // 4)], 1, GB // 4),  # a smaller one: all ranks plan for it
    ],
)
def test_ranks_that_share_a_device(
    others: list[tuple[str, tuple[str, bytes], int]],
    ranks: int,
    size: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They know it by its identity, not by the number each of them sees it by."""
    monkeypatch.setattr("socket.gethostname", lambda: "here")
    told = [(host, f"{place} {uuid.hex()}", memory) for host, (place, uuid), memory in others]
    with device(cpu_kernels()):
        backend.use("cuda")
        shares = device_shares(Told(*told))
    assert shares == Shares(ranks, size)
    assert str(shares) == (f", {ranks} ranks share one GPU" if ranks > 1 else "")
    assert device_shares(Told(*told)) == Shares()  # the CPU


def test_the_identity_is_that_of_the_device_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    assert backend.device_identity() == ""
    monkeypatch.setattr(fake_cupy, "devices", [FIRST, SECOND])
    with device(cpu_kernels()):
        found = []
        for local_rank in range(3):
            assert backend.use("cuda", local_rank).endswith(f"device {local_rank % 2})")
            found.append(backend.device_identity())
    assert found[0] == found[2] == f"0000:01:00.0 {'01' * 16}"
    assert found[1] == f"0000:81:00.0 {'02' * 16}"


@pytest.mark.parametrize("tensor", [2, 4])
def test_peers_find_room_for_the_residual_stream(tensor: int) -> None:
    """Each block's two sums, which every tensor rank keeps whole; cut along the sequence, none."""
    layers, c, s, samples = 12, 768, 256, 4
    specs = models.gpt(layers=layers, hidden_dim=c, heads=12, vocabulary=50257, sequence_length=s)
    room = {
        cut: shared_room(
            specs, Layout(1, tensor, 1), Settings(samples, samples, sequence_parallel=cut), 1
        )
        for cut in (False, True)
    }
    assert room[False] - room[True] >= 2 * 2 * layers * samples * s * c
    assert room[False] - room[True] <= 2 * 2 * layers * samples * s * c * 2


def test_what_is_watched_goes_on_while_the_host_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel may wait for a peer that waits for this host; what it will never get is told."""

    class Watch:
        looks, broken = 0, False

        def look(self) -> None:
            Watch.looks += 1
            if Watch.broken:
                raise PeerFailed("rank 1 has ended")

    watch = Watch()
    with device(cpu_kernels()):
        backend.use("cuda")
        x = backend.to_device(np.arange(3, dtype=np.float32))
        monkeypatch.setattr(
            fake_cupy.cuda.runtime, "streamQuery", lambda _: 0 if Watch.looks > 4 else 600
        )
        backend.watch(watch)
        assert backend.to_host(x).tolist() == [0, 1, 2]
        assert Watch.looks == 6  # once more when all is done
        Watch.broken = True
        for wait in (lambda: backend.to_host(x), backend.check_faults, backend.wait):
            with pytest.raises(PeerFailed, match="rank 1 has ended"):
                wait()
        del watch
        backend.wait()
        assert Watch.looks == 9


def test_a_peer_that_failed_is_told_with_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    TEXT.prepare(Alone())
    with device(cpu_kernels()):
        trainer = train.Trainer(
            MODELS["gpt"](), TEXT, mesh=plait.Mesh(), optimizer=optim.AdamW(), batch=8
        )
        steps = trainer.steps(3)
        next(steps)

        def gone(*_: object) -> None:
            raise PeerFailed("rank 0 of 2 (...), last in all_reduce: rank 1 has ended")

        monkeypatch.setattr(trainer.engine, "step", gone)
        with pytest.raises(PeerFailed, match=r"^in step 2: rank 0 of 2 .* rank 1 has ended$"):
            next(steps)


def test_what_a_kernel_found_ends_the_step() -> None:
    """Kernels cannot raise: what they found in their data is asked for once a step."""
    TEXT.prepare(Alone())
    kernels = cpu_kernels()

    def fault() -> None:
        raise ValueError("cross_entropy_statistics: a target is at or beyond the vocabulary")

    kernels.check_faults = fault
    with device(kernels):
        trainer = train.Trainer(
            MODELS["gpt"](), TEXT, mesh=plait.Mesh(), optimizer=optim.AdamW(), batch=8
        )
        with pytest.raises(ValueError, match="at or beyond the vocabulary"):
            next(trainer.steps(1))


@pytest.mark.parametrize("dtype", [np.float32, backend.bfloat16, np.int64])
def test_arrays_with_gaps_are_copied(dtype: Any) -> None:
    x = np.arange(12).reshape(3, 4).astype(dtype)
    with device(cpu_kernels()):
        backend.use("cuda")
        there, out = backend.to_device(x), backend.empty((4, 3), dtype)
        backend.assign(out, there.transpose(1, 0))
        assert backend.to_host(out).tobytes() == x.T.tobytes()
        backend.assign(there.transpose(1, 0), out)
        assert backend.to_host(there).tobytes() == x.tobytes()


class Nothing:
    def look(self) -> None:
        pass


def test_a_fault_of_a_kernel_ends_every_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """CuPy's Stream.done is False for ever after it."""
    with device(cpu_kernels()):
        backend.use("cuda")
        watched = Nothing()  # else the stream is waited for as a whole
        backend.watch(watched)
        done = backend.mark()
        with monkeypatch.context() as patch:
            patch.setattr(fake_cupy, "fault", 700)
            for wait in (backend.wait, backend.done, done):
                with pytest.raises(RuntimeError, match="cudaErrorIllegalAddress"):
                    wait()
            patch.setattr(fake_cupy, "fault", 600)
            assert not done()
        assert done()
