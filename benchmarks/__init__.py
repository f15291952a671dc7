"""Benchmarks, run from the root of the repository: `python -m benchmarks.NAME --help`; `results/` holds the records.

graph       share of pre-processing and proposal stage in the graph
stream      `edgerpn run` on a file over the bare model
streams     many sources, overload, soak, dead consumers
web_page    the cost of viewers of the web page
recall      recall for equal training time
domains     recall on many domains, without training on them and after some
general     general.prepare: the training data of the general weights; general.release: puts weights into the packages
nms         forms of NMS; nms.recall: recall by its thresholds; nms.soft_list: by the list that is rescored
precision   float16 and int8
data_check  time and memory of `edgerpn data check` on a large set
data_convert time and memory of `edgerpn data convert` on a large set
train       the training step beside torchvision's
gpu         everything that needs an NVIDIA GPU; gpu.bundle and gpu.check: in stages, prepared elsewhere
"""
