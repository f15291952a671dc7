# The runtime on a Jetson with JetPack 6 (L4T r36.4 and newer), without torch.
#   docker build -f docker/jetson6.Dockerfile -t edgerpn-jetson6 .
#   docker run --rm --runtime nvidia --group-add "$(getent group render | cut -d: -f3)" -v "$PWD:/work" edgerpn-jetson6 \
#     run model.onnx video.mp4 --out results
# The group render, which the GPU's files belong to, has another number in the image.
# CSI cameras need -v /tmp/argus_socket:/tmp/argus_socket; -v edgerpn-cache:/home/edgerpn/.cache/edgerpn keeps compiled
# kernels.
# NOT YET BUILT OR RUN ON HARDWARE: it is written from the documentation of its parts, and only linted.
#
# r36.4.0 is the newest release of this base image; it belongs to JetPack 6.1 and runs on the 6.2 releases too, whose
# CUDA 12.6 and TensorRT 10.3 are the same. TensorRT comes with it, for engines; ONNX Runtime runs on
# the CPU here.

FROM python:3.11-slim-bookworm AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY core core
COPY train train
COPY export export
COPY runtime runtime
COPY batch batch
COPY demo demo
COPY general general
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . ./general

FROM nvcr.io/nvidia/l4t-jetpack:r36.4.0
# A volume for the caches takes the owner of the folder that it covers, so the image makes it.
# Ubuntu's OpenCV reads GStreamer pipelines; the wheels of the package index do not.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        gstreamer1.0-plugins-bad \
        gstreamer1.0-plugins-good \
        gstreamer1.0-tools \
        python3-opencv \
        python3-pip \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --force render \
    && useradd --create-home --uid 1000 --groups video,render edgerpn \
    && install -d -o 1000 -g 1000 /home/edgerpn/.cache /home/edgerpn/.cache/edgerpn
# NumPy stays below 2, for which the system's OpenCV and TensorRT were compiled; this is the last such release.
# ONNX Runtime 1.23.2 is the last one for this system's Python 3.10.
# cuda-bindings of the 12 line fits CUDA 12.6.
COPY --from=build /wheels /tmp/wheels
RUN pip3 install --no-cache-dir "$(echo /tmp/wheels/edgerpn-*.whl)[onnxruntime,jetson6]" \
    /tmp/wheels/edgerpn_general-*.whl numpy==1.26.4 onnxruntime==1.23.2 \
    cuda-bindings==12.9.10 tqdm==4.70.1
COPY docker/check_image.py /tmp/check_image.py
RUN python3 -c "import tensorrt, cuda.bindings.driver" && python3 /tmp/check_image.py --gstreamer && edgerpn inspect general
USER 1000
WORKDIR /work
ENV PYTHONUNBUFFERED=1
ENTRYPOINT ["edgerpn"]
CMD ["--help"]
