# The runtime on a Jetson with JetPack 7 (Thor, Orin; CUDA 13, Ubuntu 24.04), without torch.
#   docker build -f docker/jetson7.Dockerfile -t edgerpn-jetson7 .
#   docker run --rm --runtime nvidia --group-add "$(getent group render | cut -d: -f3)" -v "$PWD:/work" edgerpn-jetson7 \
#     run model.onnx video.mp4 --out results
# The group render, which the GPU's files belong to, has another number in the image.
# CSI cameras need -v /tmp/argus_socket:/tmp/argus_socket; -v edgerpn-cache:/home/edgerpn/.cache/edgerpn keeps compiled
# kernels.
# NOT YET BUILT OR RUN ON HARDWARE: it is written from the documentation of its parts, and only linted.
#
# From JetPack 7 on a Jetson runs the images for Arm servers (SBSA). This one brings CUDA 13.0, TensorRT 10.13 and its
# Python bindings for the system's Python 3.12. ONNX Runtime runs on the CPU here. TensorRT for Arm servers knows the GPU
# of an Orin from 10.16.1 on, so an Orin with JetPack 7.2 needs a newer base: 26.05 has 10.16.1 and CUDA 13.2.
#   docker build --build-arg BASE=nvcr.io/nvidia/tensorrt:26.05-py3 -f docker/jetson7.Dockerfile -t edgerpn-jetson7 .

ARG BASE=nvcr.io/nvidia/tensorrt:25.09-py3

FROM python:3.12-slim-bookworm AS build
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

FROM ${BASE}
# A volume for the caches takes the owner of the folder that it covers, so the image makes it.
# Ubuntu's OpenCV reads GStreamer pipelines; the wheels of the package index do not.
# Ubuntu 24.04 has a user with the number 1000 of its own.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        gstreamer1.0-plugins-bad \
        gstreamer1.0-plugins-good \
        gstreamer1.0-tools \
        python3-opencv \
    && rm -rf /var/lib/apt/lists/* \
    && if id ubuntu; then userdel --remove ubuntu; fi \
    && groupadd --force render \
    && useradd --create-home --uid 1000 --groups video,render edgerpn \
    && install -d -o 1000 -g 1000 /home/edgerpn/.cache /home/edgerpn/.cache/edgerpn
# NumPy stays below 2, for which the system's OpenCV was compiled; this is the last such release.
# The system protects its Python from pip, which in an image is nobody's but ours.
COPY --from=build /wheels /tmp/wheels
RUN python3 -m pip install --no-cache-dir --break-system-packages \
    "$(echo /tmp/wheels/edgerpn-*.whl)[onnxruntime,jetson7]" /tmp/wheels/edgerpn_general-*.whl \
    numpy==1.26.4 onnxruntime==1.32.0 cuda-bindings==13.0.3 tqdm==4.70.1
COPY docker/check_image.py /tmp/check_image.py
RUN python3 -c "import tensorrt, cuda.bindings.driver" && python3 /tmp/check_image.py --gstreamer && edgerpn inspect general
USER 1000
WORKDIR /work
ENV PYTHONUNBUFFERED=1
ENTRYPOINT ["edgerpn"]
CMD ["--help"]
