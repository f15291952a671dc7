"""The bundle for DeepStream: the graph as nvinfer feeds it, configurations, a parser in C++ and a Python program."""

from __future__ import annotations

import shutil
from pathlib import Path

from edgerpn.export.onnx.deepstream import write_deepstream
from edgerpn.export.packages.package import CLASS_NAME, Contents, Packed
from edgerpn.manifest import Manifest

PARSER = Path(__file__).with_name("deepstream_parser.cpp")
"""The function by which nvinfer turns the tensors into objects."""
PROGRAM = Path(__file__).with_name("deepstream_tensors.py")
"""The program that turns the tensors into objects in Python."""

_NETWORK_MODES = {"fp32": 0, "int8": 1, "fp16": 2}
"""nvinfer's numbers of precisions; they count where it builds the engine itself."""

_CONFIG = """# {what}
[property]
gpu-id=0
gie-unique-id=1
process-mode=1
onnx-file=model.onnx
# nvinfer loads this engine if it fits, and else builds one; see README.md.
model-engine-file={engine}
batch-size={batch}
network-mode={mode}
infer-dims=3;{height};{width}
network-input-order=0
# The graph takes B, G and R from 0 to 255.
model-color-format=1
net-scale-factor=1.0
# The picture lies at the top left, as in training.
maintain-aspect-ratio=1
symmetric-padding=0
# Bilinear, as in training. The default takes the nearest pixel.
scaling-filter=1
"""
_PARSED = """network-type=0
num-detected-classes={num_classes}
labelfile-path=labels.txt
parse-bbox-func-name=NvDsInferParseCustomEdgeRpn
custom-lib-path=libedgerpn_parser.so
# The graph has suppressed near copies already.
cluster-mode=4
[class-attrs-all]
pre-cluster-threshold={min_score:g}
"""
_TENSORS = """network-type=100
output-tensor-meta=1
"""

_COMMANDS = """## Put it to use

In a container or on a device with DeepStream 7, 8 or 9, in this folder. {engine_text}

Objects by the parser in C++, for any application with an element nvinfer:

```sh
g++ -O2 -shared -fPIC -I /opt/nvidia/deepstream/deepstream/sources/includes -I /usr/local/cuda/include \\
    edgerpn_parser.cpp -o libedgerpn_parser.so
gst-launch-1.0 nvurisrcbin uri=file:///VIDEO ! mux.sink_0 \\
    nvstreammux name=mux batch-size={batch} width=1920 height=1080 \\
    ! nvinfer config-file-path=config_objects.txt ! nvvideoconvert ! nvdsosd ! nveglglessink
```

Objects by Python, with pyservicemaker and PyTorch:

```sh
python3 edgerpn_tensors.py file:///VIDEO
```

Boxes with a score below {min_score:g} are left out: `pre-cluster-threshold` in `config_objects.txt`, `MIN_SCORE` in
`edgerpn_tensors.py`.

## Not run

None of this was run in DeepStream, which was not at hand where it was written. The graph, the parser and the arithmetic
of the Python program were tested without it; the parser was compiled against declarations written from the
documentation, not against the headers of DeepStream.

nvinfer pads with black where training padded with grey.
"""


_BUILT_BY_NVINFER = "nvinfer builds the engine at its first start."
_BUILT_BEFORE = """First build the engine there, which nvinfer loads by its name:

```sh
/usr/src/tensorrt/bin/trtexec --onnx=model.onnx --stronglyTyped --saveEngine={engine}{shapes}
```

nvinfer's log then says `Use deserialized engine model`. If it says `Trying to create engine from model files`, stop it:
an engine that nvinfer builds itself is another model. For int8 it asks for a calibration file, which a graph with its
own scales does not have, and falls back to fp16. For fp16 it leaves the types to TensorRT, which may then compute
boxes, areas and scores in float16 too, where areas above 65504 overflow. An engine serves the GPU and the TensorRT that
built it."""


def write(packed: Packed, folder: Path) -> Contents:
    """Writes the files; `edgerpn.export.packages.package` checks them."""
    manifest, min_score = packed.manifest, packed.config.min_score
    write_deepstream(packed.file, folder / "model.onnx", packed.golden.frames)
    names = manifest.class_names or (CLASS_NAME,)
    (folder / "labels.txt").write_text("".join(f"{name}\n" for name in names), "utf-8")
    parsed = _PARSED.format(num_classes=len(names), min_score=min_score)
    (folder / "config_objects.txt").write_text(_config(manifest, "Objects by the parser.") + parsed, "utf-8")
    (folder / "config_tensors.txt").write_text(_config(manifest, "Tensors for a program.") + _TENSORS, "utf-8")
    shutil.copyfile(PARSER, folder / "edgerpn_parser.cpp")
    height, width = manifest.input.frame_hw
    program = PROGRAM.read_text("utf-8")
    for name, value in (
        ("MIN_SCORE", f"{min_score:g}"),
        ("NETWORK_WH", f"({width}, {height})"),
        ("NAMES", repr(names)),
    ):
        program = _with_value(program, name, value)
    (folder / "edgerpn_tensors.py").write_text(program, "utf-8")
    commands = _COMMANDS.format(batch=_batch(manifest), min_score=min_score, engine_text=_engine_text(manifest))
    return Contents(graph="model.onnx", expected=packed.golden, commands=commands)


def _with_value(program: str, name: str, value: str) -> str:
    """Returns the program with another value of one of its constants."""
    head, _, rest = program.partition(f"\n{name} = ")
    return f"{head}\n{name} = {value}\n{rest.partition(chr(10))[2]}"


def _config(manifest: Manifest, what: str) -> str:
    height, width = manifest.input.frame_hw
    return _CONFIG.format(
        what=what,
        batch=_batch(manifest),
        engine=_engine(manifest),
        mode=_NETWORK_MODES[manifest.precision],
        height=height,
        width=width,
    )


def _engine(manifest: Manifest) -> str:
    """Name of the engine, as nvinfer gives it to those that it builds."""
    return f"model.onnx_b{_batch(manifest)}_gpu0_{manifest.precision}.engine"


def _engine_text(manifest: Manifest) -> str:
    """Who builds the engine. nvinfer's own is weakly typed, which changes nothing in a graph of float32 only."""
    if manifest.precision == "fp32":
        return _BUILT_BY_NVINFER
    height, width = manifest.input.frame_hw
    shape = f"{manifest.input.name}:{_batch(manifest)}x3x{height}x{width}"
    shapes = "" if manifest.input.batch else "".join(f" \\\n    --{end}Shapes={shape}" for end in ("min", "opt", "max"))
    return _BUILT_BEFORE.format(engine=_engine(manifest), shapes=shapes)


def _batch(manifest: Manifest) -> int:
    """Frames in a batch; nvinfer builds an engine for up to this many when the graph's batch is dynamic."""
    return manifest.input.batch or 1
