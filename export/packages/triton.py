"""The bundle for NVIDIA Triton: a repository with one model, its warm-up from the golden frames, and a client."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np

from edgerpn.errors import ExportError
from edgerpn.export.packages import triton_client
from edgerpn.export.packages.package import Contents, Packed
from edgerpn.manifest import METADATA_KEY, Manifest, manifest_path
from edgerpn.runtime.backends.onnxruntime import harmful_optimizers
from edgerpn.runtime.run.runner import GPU_BATCH

VERSION = "1"
"""Folder of the graph below the model's."""

_WARM_UP = "golden_frames"
_TYPES = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32", "int32": "TYPE_INT32"}

_CONFIG = """# Model {name} for Triton, as edgerpn package wrote it: the parameter at the end describes this graph only.
name: "{name}"
platform: "onnxruntime_onnx"
max_batch_size: {max_batch}
input [
{inputs}
]
output [
{outputs}
]
{batching}# One instance on each GPU, or one on the CPU.
instance_group [
  {{ count: 1, kind: KIND_AUTO }}
]
model_warmup [
{warm_ups}
]
parameters {{
  key: "{key}"
  value {{ string_value: {manifest} }}
}}
"""

_BATCHING = """# Requests that wait together run together; nobody waits for others.
dynamic_batching {
}
"""

_COMMANDS = """## Put it to use

This folder is a model repository:

```sh
docker run --rm --gpus all -p 8000:8000 -p 8001:8001 -v "$PWD:/models:ro" \\
    nvcr.io/nvidia/tritonserver:VERSION-py3 tritonserver --model-repository=/models
```

VERSION must bring ONNX Runtime 1.18 or newer. Without a GPU leave out `--gpus all`. For a repository that exists, copy
the folder `{name}` into it; its name stays. `config.pbtxt` describes this graph only: for another one write another
bundle.

From this folder, on a machine that reaches the server:

```sh
pip install numpy opencv-python-headless 'tritonclient[grpc]'
python client.py --smoke
python client.py photo.jpg
```

`--smoke` sends the golden frames and compares the proposals of the server with those that are expected. Cameras and
videos, with or without gRPC:

```sh
edgerpn run http://localhost:8000/{name} video.mp4 --jsonl proposals.jsonl
edgerpn run triton+grpc://localhost:8001/{name} rtsp://camera/stream --jsonl -
```

Inside the configuration: {limit}. `instance_group` has one instance on each GPU, or one on the CPU; a `count` of 2
overlaps copies with computing and takes twice the memory. The warm-up runs golden frames before the first request.
"""


def write(packed: Packed, folder: Path) -> Contents:
    """Writes the files; `edgerpn.export.packages.package` checks them.

    Raises:
        ExportError: Triton's ONNX Runtime would compute something else than the graph.
    """
    manifest = packed.manifest
    if harmful_optimizers(manifest):
        raise ExportError(
            f"{packed.file}: int8 for TensorRT, whose biases ONNX Runtime makes coarser inside of Triton, where this "
            "cannot be turned off; export it with --target onnxruntime"
        )
    # Triton takes the name of the folder, and addresses hold it.
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", manifest.name).strip("-") or "model"
    model = folder / name
    for part in (VERSION, "warmup"):
        (model / part).mkdir(parents=True)
    shutil.copyfile(packed.file, model / VERSION / "model.onnx")
    batch = manifest.input.batch
    frames = np.resize(packed.golden.frames, (batch or 1, *manifest.input.frame_shape))
    (model / "warmup" / _WARM_UP).write_bytes(frames.tobytes())
    text = manifest_path(packed.file).read_text(encoding="utf-8")
    (model / "config.pbtxt").write_text(config(name, manifest, text), encoding="utf-8")
    shutil.copyfile(triton_client.__file__, folder / "client.py")
    limit = "a fixed batch, so requests never run together" if batch else f"{GPU_BATCH} frames in a batch at most"
    return Contents(
        graph=f"{name}/{VERSION}/model.onnx",
        expected=packed.golden,
        commands=_COMMANDS.format(name=name, limit=limit),
    )


def config(name: str, manifest: Manifest, manifest_text: str) -> str:
    """Returns the text of config.pbtxt.

    Args:
        name: Name of the model on the server.
        manifest: Describes its graph.
        manifest_text: The file of the manifest, for runs that use the server.
    """
    batch = manifest.input.batch
    shape = manifest.input.frame_shape if batch is None else (batch, *manifest.input.frame_shape)
    outputs = [
        _tensor(spec.name, spec.dtype, tuple(int(size) for size in spec.shape if size != "N"), batch)
        for spec in manifest.outputs_by_role.values()
    ]
    sizes = [1, GPU_BATCH] if batch is None else [1]
    return _CONFIG.format(
        name=name,
        max_batch=0 if batch else GPU_BATCH,
        inputs=_tensor(manifest.input.name, manifest.input.dtype, manifest.input.frame_shape, batch),
        outputs=",\n".join(outputs),
        batching="" if batch else _BATCHING,
        warm_ups=",\n".join(_warm_up(manifest.input.name, size, shape) for size in sizes),
        key=METADATA_KEY,
        # JSON's escapes are among those of protobuf's text format.
        manifest=json.dumps(manifest_text),
    )


def _tensor(name: str, dtype: str, shape: tuple[int, ...], batch: int | None) -> str:
    """Describes a tensor; `shape` is that of one frame."""
    dims = shape if batch is None else (batch, *shape)
    # Triton has no tensor without a size behind the batch.
    more = "" if dims else ", reshape { shape: [ ] }"
    return f'  {{ name: "{name}", data_type: {_TYPES[dtype]}, dims: {list(dims or (1,))}{more} }}'


def _warm_up(name: str, batch: int, shape: tuple[int, ...]) -> str:
    value = f'{{ data_type: TYPE_UINT8, dims: {list(shape)}, input_data_file: "{_WARM_UP}" }}'
    return f'  {{ name: "{batch} in a batch", batch_size: {batch}, inputs {{ key: "{name}", value {value} }} }}'
