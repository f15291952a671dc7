"""Diagnosis of a camera or of this machine: `edgerpn doctor`."""
