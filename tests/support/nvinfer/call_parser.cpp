// Calls the parser as nvinfer does: call_parser NUM_CLASSES THRESHOLD NAME=FILE..., each file the bytes of a tensor.
// Prints a line for each object: class, left, top, width, height, confidence. The status is 3 when the parser refuses.

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <list>
#include <string>

#include "nvdsinfer_custom_impl.h"

extern "C" bool NvDsInferParseCustomEdgeRpn(std::vector<NvDsInferLayerInfo> const &, NvDsInferNetworkInfo const &,
                                            NvDsInferParseDetectionParams const &,
                                            std::vector<NvDsInferObjectDetectionInfo> &);

int main(int argc, char **argv) {
  std::list<std::string> names;
  std::list<std::vector<char>> buffers;
  std::vector<NvDsInferLayerInfo> layers;
  for (int i = 3; i < argc; ++i) {
    const std::string word = argv[i];
    const size_t equals = word.find('=');
    names.push_back(word.substr(0, equals));
    std::ifstream file(word.substr(equals + 1), std::ios::binary);
    buffers.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    NvDsInferLayerInfo layer{};
    layer.layerName = names.back().c_str();
    layer.buffer = buffers.back().data();
    layers.push_back(layer);
  }
  NvDsInferParseDetectionParams params{};
  params.numClassesConfigured = std::atoi(argv[1]);
  params.perClassPreclusterThreshold.assign(params.numClassesConfigured, std::atof(argv[2]));
  std::vector<NvDsInferObjectDetectionInfo> objects;
  if (!NvDsInferParseCustomEdgeRpn(layers, NvDsInferNetworkInfo{160, 96, 3}, params, objects)) {
    return 3;
  }
  for (const auto &object : objects) {
    std::printf("%u %.6f %.6f %.6f %.6f %.6f\n", object.classId, object.left, object.top, object.width, object.height,
                object.detectionConfidence);
  }
  return 0;
}
