// Turns the tensors of an EdgeRPN graph into objects of DeepStream's element nvinfer.
//
// Tensors: boxes float32 [K, 4] x1, y1, x2, y2 in pixels of the network's input, best first; scores float32 [K];
// count int32 [1]; with classes also labels int32 [K]. nvinfer maps the boxes to the frame.

#include <cstring>
#include <iostream>
#include <vector>

#include "nvdsinfer_custom_impl.h"

namespace {

template <typename T>
const T *find(const std::vector<NvDsInferLayerInfo> &layers, const char *name) {
  for (const NvDsInferLayerInfo &layer : layers) {
    if (std::strcmp(layer.layerName, name) == 0) {
      return static_cast<const T *>(layer.buffer);
    }
  }
  return nullptr;
}

}  // namespace

extern "C" bool NvDsInferParseCustomEdgeRpn(std::vector<NvDsInferLayerInfo> const &layers,
                                            NvDsInferNetworkInfo const &network,
                                            NvDsInferParseDetectionParams const &params,
                                            std::vector<NvDsInferObjectDetectionInfo> &objects) {
  (void)network;
  const float *boxes = find<float>(layers, "boxes");
  const float *scores = find<float>(layers, "scores");
  const int *count = find<int>(layers, "count");
  const int *labels = find<int>(layers, "labels");
  if (boxes == nullptr || scores == nullptr || count == nullptr) {
    std::cerr << "EdgeRPN: expected the tensors boxes, scores and count" << std::endl;
    return false;
  }
  for (int row = 0; row < *count; ++row) {
    const unsigned int class_id = labels == nullptr ? 0 : static_cast<unsigned int>(labels[row]);
    if (class_id >= params.numClassesConfigured || scores[row] < params.perClassPreclusterThreshold[class_id]) {
      continue;
    }
    const float *box = boxes + 4 * row;
    NvDsInferObjectDetectionInfo object{};
    object.classId = class_id;
    object.left = box[0];
    object.top = box[1];
    object.width = box[2] - box[0];
    object.height = box[3] - box[1];
    object.detectionConfidence = scores[row];
    objects.push_back(object);
  }
  return true;
}

CHECK_CUSTOM_PARSE_FUNC_PROTOTYPE(NvDsInferParseCustomEdgeRpn);
