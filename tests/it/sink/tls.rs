//! A backend over https is who its certificate says, or it gets nothing.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use rcgen::generate_simple_self_signed;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::{A, event, ids};
use crate::support::backend::Backend;
use crate::support::plugins;
use crate::support::process::ServerProcess;

/// A port that takes TLS with this certificate, and passes on what is in it.
async fn front(backend: SocketAddr, certificate: &str, key: &str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                // A client that doesn't trust the certificate goes away.
                let Ok(mut outside) = acceptor.accept(tcp).await else { return };
                let mut inside = TcpStream::connect(backend).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
            });
        }
    });
    port
}

fn server(none: &Path, authorities: &Path, secret: &Path, url: &str) -> ServerProcess {
    let sink = format!(
        "[sinks.backend]\nurl = {url:?}\nevents = [\"ride.*\"]\nsources = [\"*\"]\nsecret_files = [{secret:?}]\n\
         [store]\ndurability = \"memory\"\n"
    );
    let authorities = format!("SSL_CERT_FILE={}", authorities.display());
    ServerProcess::under(&["env", &authorities], none, &sink)
}

#[tokio::test]
async fn a_backend_over_https_is_trusted_by_its_certificate_only() {
    let (none, dir) = (plugins(&[]), tempfile::tempdir().unwrap());
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let made = || generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (own, other) = (made(), made());
    let (trusted, strange, secret) = (file("own", &own.cert.pem()), file("other", &other.cert.pem()), file("secret", A));
    let backend = Backend::start().await;
    let port = front(backend.address, &own.cert.pem(), &own.signing_key.serialize_pem()).await;

    let running = server(none.path(), &trusted, &secret, &format!("https://localhost:{port}/hook"));
    running.server.post("/events", event("a", 1)).await;
    let received = backend.accepts(1).await;
    assert_eq!((ids(&received), received[0].header("host")), (vec!["a-1".to_owned()], format!("localhost:{port}").as_str()));
    drop(running);

    // Neither a stranger's certificate, nor the right one for another name.
    for (authorities, host) in [(&strange, "localhost"), (&trusted, "127.0.0.1")] {
        let running = server(none.path(), authorities, &secret, &format!("https://{host}:{port}/hook"));
        running.server.post("/events", event("a", 2)).await;
        let failed = "signalpost_sink_attempts_total{outcome=\"failed\",sink=\"backend\"}";
        while running.server.metric(failed).await < 2.0 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        let shown = running.server.get("/sinks").await["sinks"][0].clone();
        assert!(shown["last_failure"]["detail"].as_str().unwrap().contains("certificate"), "{shown}");
        assert_eq!((&shown["waiting"], backend.received().len()), (&json!(1), 1));
    }
}
