"""Bundles: folders with a model that other programs run; `package.TARGETS` lists the programs."""
