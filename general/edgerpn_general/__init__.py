"""The general model of EdgeRPN as files: `edgerpn run general` finds them here by name.

CARD.md beside this file says what the model was trained on, under which licences, and what it is bad at.
"""

from pathlib import Path

_FOLDER = Path(__file__).parent

GENERAL = _FOLDER / "general.onnx"
"""The graph for 640x640 pixels; general.json is its manifest, general.golden.npz holds its golden frames."""
GENERAL_384X640 = _FOLDER / "general-384x640.onnx"
"""The same network for frames of 16:9, at 384x640 pixels."""
