"""EdgeRPN: class-agnostic object proposals on edge GPUs, from a training folder to a camera.

The package itself holds what every stage shares (manifest, settings, errors, frame geometry) and needs
NumPy alone. `edgerpn.train`, `edgerpn.export` and `edgerpn.runtime` bring their own dependencies.
"""

__version__ = "0.2.0.dev0"
