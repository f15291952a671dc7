"""Benchmarks, run from the root of the repository: `python -m benchmarks.NAME --help`; `results/` holds the records.

graph       share of pre-processing and proposal stage in the graph
stream      `edgerpn run` on a file over the bare model
streams     many sources, overload, soak, dead consumers
web_page    the cost of viewers of the web page
recall      recall for equal training time
nms         forms of NMS; nms.recall: recall by its thresholds; nms.soft_list: by the list that is rescored
precision   float16 and int8
data_check  time and memory of `edgerpn data check` on a large set
data_convert time and memory of `edgerpn data convert` on a large set
train       the training step beside torchvision's
general.release  exports the general weights into the package edgerpn-general
gpu         everything that needs an NVIDIA GPU; gpu.bundle and gpu.check: in stages, prepared elsewhere
"""
