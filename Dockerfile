# The service and the simulated fleet. Build: docker build -t device-ota .
FROM rust:1.95-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev make && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY . .
RUN cargo build --release --locked --bin device-ota --bin device-sim

FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin device-ota \
    && install -d -o device-ota -g device-ota -m 0700 /var/lib/device-ota
COPY --from=build /build/target/release/device-ota /build/target/release/device-sim /usr/local/bin/
USER device-ota
WORKDIR /var/lib/device-ota
VOLUME /var/lib/device-ota
ENV DEVICE_OTA_DATA_DIR=/var/lib/device-ota
EXPOSE 8216 1883 8883
# Ready when its database answers. To be overridden where HTTP speaks TLS or has another port.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/8216 && printf 'GET /health/ready HTTP/1.0\\r\\n\\r\\n' >&3 && head -n 1 <&3 | grep -q ' 200 '"]
ENTRYPOINT ["device-ota"]
