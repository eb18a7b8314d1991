# docker build -t signalpost . && docker run --rm --network host -v signalpost:/var/lib/signalpost signalpost
FROM rust:1-slim-trixie AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++ make && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN cargo build --release --locked

FROM debian:trixie-slim
COPY --from=build /src/target/release/signalpost /usr/local/bin/signalpost
COPY --from=build /src/plugins/pooling.wasm /src/plugins/compact.wasm /src/plugins/chat.wasm /src/plugins/offers.wasm /etc/signalpost/plugins/
RUN useradd --system --create-home --user-group signalpost && install -d -m 0700 -o signalpost -g signalpost /var/lib/signalpost
USER signalpost
# Mailboxes, groups, the policies' state and dead letters are kept here. Since the folder is named, a server that can't write to it doesn't start.
ENV SIGNALPOST_STORE_DIR=/var/lib/signalpost
VOLUME /var/lib/signalpost
# Compiled plugins are kept in the user's cache. Listening beyond the container's loopback needs auth.keys and auth.users, or the say-so.
ENV SIGNALPOST_PLUGINS_DIR=/etc/signalpost/plugins
EXPOSE 8080
STOPSIGNAL SIGTERM
ENTRYPOINT ["signalpost"]
