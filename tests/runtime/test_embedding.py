"""Programs that use the runtime in their own way: threads, an event loop, daemon processes, scripts without a file."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgerpn.runtime import Model, load
from tests.support.mjpeg_server import MjpegCamera

pytestmark = pytest.mark.timeout(300)

MakeModel = Callable[..., Path]
Image = npt.NDArray[np.uint8]
LIMIT_S = 200
"""Seconds after which a program counts as hung; on an idle machine each needs about two."""


@pytest.fixture
def frames(paint: Callable[..., Image]) -> list[Image]:
    """Frames of two sizes, each with another box and count."""
    return [paint(192 + 96 * (i % 2), 320, box=(10 + i, 20, 90 + i, 120), count=i % 7) for i in range(24)]


def test_eight_threads_share_two_models(make_model: MakeModel, tmp_path: Path, frames: list[Image]) -> None:
    for name in ("one", "any"):
        (tmp_path / name).mkdir()
    with (
        load(make_model(tmp_path / "one", batch=1), threads=1) as one,
        load(make_model(tmp_path / "any", batch=None), threads=1) as dynamic,
        ThreadPoolExecutor(8) as pool,
    ):
        models: list[Model] = [one, dynamic]
        expected = [[model(frame) for frame in frames] for model in models]
        jobs = [(side, number) for _ in range(4) for number in range(len(frames)) for side in (0, 1)]
        found = list(pool.map(lambda job: models[job[0]](frames[job[1]]), jobs))
    for (side, number), proposals in zip(jobs, found, strict=True):
        np.testing.assert_array_equal(proposals.boxes, expected[side][number].boxes)
        np.testing.assert_array_equal(proposals.scores, expected[side][number].scores)


def test_an_event_loop_calls_a_model_itself_and_in_threads(
    model_path: Path, video_path: Path, frames: list[Image]
) -> None:
    async def detect(model: Model) -> list[int]:
        alone = [model(frame) for frame in frames]
        stream = asyncio.create_task(
            asyncio.to_thread(lambda: [result.index for result in model.stream(video_path, max_frames=5)])
        )
        together = await asyncio.gather(*(asyncio.to_thread(model, frame) for frame in frames))
        indices = await stream
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_array_equal(one.boxes, other.boxes)
        return indices

    with load(model_path, threads=1) as model:
        assert asyncio.run(detect(model)) == [0, 1, 2, 3, 4]


STREAM = """
def count_results(model_path, url):
    from edgerpn.runtime import load
    with load(model_path, threads=1) as model:
        return len(list(model.stream(url, max_frames=3)))
"""

DAEMON = (
    STREAM
    + """
import multiprocessing, sys

def work(queue, *arguments):
    queue.put(count_results(*arguments))

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    queue = context.Queue()
    # multiprocessing forbids children to a daemon; the camera's process must not be one of its kind.
    process = context.Process(target=work, args=(queue, *sys.argv[2:]), daemon=True)
    process.start()
    print(queue.get())
    process.join()
"""
)


def run_python(*words: object, program: str | None = None) -> str:
    """Runs Python and returns what it printed."""
    done = subprocess.run(
        [sys.executable, *map(str, words)], input=program, capture_output=True, text=True, check=False, timeout=LIMIT_S
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_daemon_process_reads_a_camera(start: str, model_path: Path, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(textwrap.dedent(DAEMON))
    with MjpegCamera() as camera:
        assert run_python(tmp_path / "program.py", start, model_path, camera.url) == "3"


ONE_FILE = """\
#!{python}
import os
import sys
{lines}
sys.executable = __file__
with open(f"{{__file__}}.parents", "a") as parents:
    parents.write(f"{{os.getppid()}}\\n")
"""


@pytest.fixture
def write_program(model_path: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes a program that reads a camera and is its own interpreter, as one in a single file is."""

    def write(url: str, lines: str = "") -> Path:
        program = tmp_path / "program"
        begin = ONE_FILE.format(python=sys.executable, lines=lines)
        program.write_text(f"{begin}{STREAM}\nprint(count_results({str(model_path)!r}, {url!r}))\n")
        program.chmod(0o755)
        return program

    return write


def test_a_program_in_one_file_reads_a_camera_with_the_documented_lines(
    root: Path, write_program: Callable[..., Path]
) -> None:
    section = (root / "docs" / "recipes.md").read_text().split("## In one file\n")[1]
    with MjpegCamera() as camera:
        assert run_python(write_program(camera.url, section.split("```")[1].removeprefix("python\n"))) == "3"


def test_a_program_in_one_file_does_not_start_itself_over_and_over(write_program: Callable[..., Path]) -> None:
    program = write_program("http://127.0.0.1:9/")
    with subprocess.Popen([sys.executable, program], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        message = "was itself started to run a module of edgerpn"
        assert any(message in line for line in process.stderr), "it ended without the message"
        process.kill()
    _, *others = program.with_name("program.parents").read_text().split()
    assert set(others) == {str(process.pid)}


def test_a_script_from_the_standard_input_reads_a_camera(model_path: Path) -> None:
    program = f"{STREAM}\nimport sys\nprint(count_results(*sys.argv[1:]))\n"
    with MjpegCamera() as camera:
        assert run_python("-", model_path, camera.url, program=program) == "3"


def write_endless_model(folder: Path, make_model: MakeModel) -> Path:
    """A `bright` model that never returns from a frame with proposals."""
    path = make_model(folder, has_sidecar=False)
    proto = onnx.load(path)
    (scores,) = (node for node in proto.graph.node if "scores" in node.output)
    scores.output[0] = "plain_scores"
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["goes_on"], ["still"]), helper.make_node("Sin", ["angle"], ["sine"])],
        "turn",
        [
            value("turn", TensorProto.INT64, []),
            value("goes_on", TensorProto.BOOL, []),
            value("angle", TensorProto.FLOAT, [1]),
        ],
        [value("still", TensorProto.BOOL, []), value("sine", TensorProto.FLOAT, [1])],
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.array(1e15, np.float32), "very_many"))
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), "first_angle"))
    proto.graph.node.extend(
        [
            helper.make_node("Mul", ["count_float", "very_many"], ["turns_float"]),
            helper.make_node("Cast", ["turns_float"], ["turns"], to=TensorProto.INT64),
            helper.make_node("Loop", ["turns", "", "first_angle"], ["last_angle"], body=body),
            helper.make_node("Add", ["plain_scores", "last_angle"], ["scores"]),
        ]
    )
    onnx.checker.check_model(proto)
    onnx.save(proto, path)
    return path


LEAVING = """
import sys
import time
from edgerpn.runtime import load
from edgerpn.runtime.run import workers

workers._JOIN_S = 0.1
stream = load(sys.argv[1], threads=1).stream(sys.argv[2])
print(next(stream).frame.index)
# The frame after it is in the model when the process works on.
begun_s = time.process_time()
while time.process_time() < begun_s + 1:
    time.sleep(0.05)
stream.close()
sys.exit(3)
"""


def test_a_program_ends_while_a_frame_is_in_the_model(make_model: MakeModel, tmp_path: Path, video_path: Path) -> None:
    path = write_endless_model(tmp_path, make_model)
    done = subprocess.run(
        [sys.executable, "-c", LEAVING, str(path), str(video_path)],
        capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert "edgerpn-infer-0 is still inside the model and is left behind" in done.stderr
    assert (done.stdout, done.returncode) == ("0\n", 3), done.stderr
