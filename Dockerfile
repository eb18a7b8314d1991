# docker build -t signalpost . && docker run --rm --network host -v signalpost:/var/lib/signalpost signalpost
#
# The bases are exact, by tag and digest; a newer one is another line here, or a --build-arg.
ARG RUST=rust:1.95.0-slim-trixie@sha256:e14e87345b4d5964ddcc3491d27ee046a0f23820f340c3c1e24da6880141f7c0
ARG DEBIAN=debian:13.6-slim@sha256:d7e12182ce18b85b93007c1dedf31f2d29e01ccf3182cc4017c709b6259bc132

FROM ${RUST} AS build
# Debian takes old versions of its packages away, so that a fixed one would break the build; nothing of them is in the image.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ make && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN cargo build --release --locked

FROM ${DEBIAN}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Signalpost" \
      org.opencontainers.image.description="A WebSocket message router whose routing and formatting policies are WebAssembly plugins" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="docker.io/library/debian:13.6-slim"
COPY --from=build /src/target/release/signalpost /usr/local/bin/signalpost
COPY --from=build /src/plugins/pooling.wasm /src/plugins/compact.wasm /src/plugins/chat.wasm /src/plugins/offers.wasm /etc/signalpost/plugins/
# A number, which orchestrators can check not to be root's without looking into the image.
RUN useradd --system --uid 10001 --create-home --user-group signalpost && install -d -m 0700 -o 10001 -g 10001 /var/lib/signalpost
USER 10001:10001
# Mailboxes, groups, the policies' state and dead letters are kept here, and the last good versions of plugins. Since the folder is named, a
# server that can't write to it doesn't start.
ENV SIGNALPOST_STORE_DIR=/var/lib/signalpost
VOLUME /var/lib/signalpost
# Compiled plugins are kept in the user's cache. Listening beyond the container's loopback needs auth.keys and auth.users, or the say-so.
ENV SIGNALPOST_PLUGINS_DIR=/etc/signalpost/plugins
EXPOSE 8080
STOPSIGNAL SIGTERM
# It asks the server at the `listen` of its own configuration. Orchestrators that tell the two apart ask /readyz as well.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["signalpost", "health"]
ENTRYPOINT ["signalpost"]
