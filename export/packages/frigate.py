"""The bundle for Frigate: the graph with rows, a label map, and the detector's part of its configuration."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from edgerpn.export.onnx.frigate import raise_scores, write_frigate
from edgerpn.export.packages.package import CLASS_NAME, Contents, Packed

_CONFIG = """# Merge this into config.yml of Frigate.
detectors:
  edgerpn:
    type: onnx
model:
  model_type: yolonas
  path: /config/model_cache/edgerpn/model.onnx
  labelmap_path: /config/model_cache/edgerpn/labels.txt
  width: {width}
  height: {height}
  input_tensor: nhwc
  input_pixel_format: bgr
  input_dtype: int
objects:
  track: {names}
  filters:
"""
_FILTER = """    {name}:
      min_score: 0.5
      threshold: 0.6
"""

_COMMANDS = """## Put it to use

Frigate keeps its configuration in a folder that the container sees as `/config`; here it is `FRIGATE/config`.

```sh
mkdir -p FRIGATE/config/model_cache/edgerpn
cp model.onnx labels.txt FRIGATE/config/model_cache/edgerpn/
```

Merge `frigate.yml` into `FRIGATE/config/config.yml` and restart Frigate. On an NVIDIA GPU take an image with the suffix
`-tensorrt`.

A score of {min_score:g} of the model is 0.5 in Frigate; `--min-score` of `edgerpn package` changes it. Frigate keeps
what is above 0.5, and `min_score` and `threshold` in the configuration choose among that. It reads 20 rows of a region
at most. Of the boxes of one label it drops those that overlap a better one (IoU above 0.4; 0.6 for `car`), and those
that lie in a larger one by more than 90 % and have 5 % of its area or more. With the single label `object`, small
objects in front of large ones therefore vanish.
"""
_NOT_SQUARE = """
Frigate scales square regions to the model's size, and this model is not square: it sees them distorted. A model with
a square size, such as `--size 320`, fits better.
"""


def write(packed: Packed, folder: Path) -> Contents:
    """Writes the files; `edgerpn.export.packages.package` checks them."""
    golden, min_score = packed.golden, packed.config.min_score
    write_frigate(packed.file, folder / "model.onnx", golden.frames, min_score=min_score)
    height, width = packed.manifest.input.frame_hw
    names = packed.manifest.class_names or (CLASS_NAME,)
    # With numbers, a name may begin with a digit.
    (folder / "labels.txt").write_text("".join(f"{number} {name}\n" for number, name in enumerate(names)), "utf-8")
    quoted = [json.dumps(name, ensure_ascii=False) for name in names]  # a string of JSON is one of YAML
    config = _CONFIG.format(width=width, height=height, names=f"[{', '.join(quoted)}]")
    (folder / "frigate.yml").write_text(config + "".join(_FILTER.format(name=name) for name in quoted), "utf-8")
    return Contents(
        graph="model.onnx",
        expected=dataclasses.replace(golden, scores=raise_scores(golden.scores, min_score), class_scores=None),
        outputs={"rows": "rows"},
        commands=_COMMANDS.format(min_score=min_score) + ("" if height == width else _NOT_SQUARE),
    )
