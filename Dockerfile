# syntax=docker/dockerfile:1
# Build:  docker build -t parley .
# Run:    docker run --rm --name parley -p 4222:4222 -p 8222:8222 -v parley-data:/data parley
# Tool:   docker exec parley /parley topic list

FROM --platform=$BUILDPLATFORM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG TARGETOS TARGETARCH
RUN CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH \
    go build -trimpath -ldflags='-s -w' -o /out/ ./cmd/parleyd ./cmd/parley
# Directories of the final image, which has no shell to make them with. A new
# volume takes over the owner of the directory that it is mounted on.
RUN mkdir -p /root-fs/data /root-fs/tmp && chmod 1777 /root-fs/tmp

FROM scratch
COPY --from=build --chown=65532:65532 /root-fs/ /
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /out/ /
USER 65532:65532
# Inside a container loopback reaches nobody: clients and HTTP listen on every
# address of it. The ports between brokers stay on loopback until a cluster sets
# them, as beyond it they need a secret or TLS: see docs/deploy/compose.yaml.
# The name is fixed because a container made anew has another host name.
ENV PARLEY_NAME=parley \
    PARLEY_DATA_DIR=/data \
    PARLEY_LISTEN=0.0.0.0:4222 \
    PARLEY_HTTP=0.0.0.0:8222 \
    PARLEY_LOG_FORMAT=json
VOLUME /data
EXPOSE 4222 8222
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 CMD ["/parleyd", "healthcheck"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/parleyd"]
