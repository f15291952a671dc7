# The runtime on a CPU, without torch: frames in, proposals out.
#   docker build -f docker/runtime.Dockerfile -t edgerpn-runtime .
#   docker run --rm -v "$PWD:/work" edgerpn-runtime run model.onnx video.mp4 --out results
# The user inside is number 1000 and writes into /work; give --user "$(id -u):$(id -g)" if yours is another.

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

FROM python:3.11-slim-bookworm
COPY constraints.txt /tmp/constraints.txt
COPY --from=build /wheels /tmp/wheels
# A volume for the caches takes the owner of the folder that it covers, so the image makes it.
RUN pip install --no-cache-dir -c /tmp/constraints.txt "$(echo /tmp/wheels/edgerpn-*.whl)[onnxruntime,opencv-headless]" \
        /tmp/wheels/edgerpn_general-*.whl \
    && useradd --create-home --uid 1000 edgerpn \
    && install -d -o 1000 -g 1000 /home/edgerpn/.cache /home/edgerpn/.cache/edgerpn
COPY docker/check_image.py /tmp/check_image.py
RUN python /tmp/check_image.py && edgerpn inspect general
USER 1000
WORKDIR /work
ENV PYTHONUNBUFFERED=1
ENTRYPOINT ["edgerpn"]
CMD ["--help"]
