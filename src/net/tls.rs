//! TLS (RFC 8446, RFC 5246) with rustls and its default ciphers: the server's certificate, which is reloaded when it changes, and the
//! authorities that a client trusts.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, anyhow, ensure};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig, ServerConnection};

use crate::config;
use crate::types::file;

/// The only protocol offered by ALPN (RFC 7301).
const ALPN: &[u8] = b"http/1.1";

/// Bytes of a file with a certificate and its chain, or with a key. They have a few KiB.
const PEM_BYTES_MAX: u64 = 1 << 20;

/// TLS of a server.
#[derive(Debug)]
pub struct Tls {
    files: config::Tls,
    current: ArcSwap<ServerConfig>,
    /// The files' times when they were last read, whether or not that succeeded.
    seen: Mutex<[Option<SystemTime>; 2]>,
}

impl Tls {
    /// Reads the certificate and key. Returns `None` if no certificate is configured.
    ///
    /// # Errors
    /// A file can't be read, isn't PEM, or the key is not the certificate's.
    pub fn new(files: &config::Tls) -> anyhow::Result<Option<Tls>> {
        if files.certificate_file.as_os_str().is_empty() {
            return Ok(None);
        }
        let seen = seen(files);
        Ok(Some(Tls { files: files.clone(), current: ArcSwap::new(read(files)?), seen: Mutex::new(seen) }))
    }

    /// Returns the TLS state of a new connection.
    ///
    /// # Errors
    /// rustls refuses the configuration.
    pub fn accept(&self) -> Result<Connection, rustls::Error> {
        Ok(ServerConnection::new(self.current.load_full())?.into())
    }

    /// Reloads changed files for new connections. If they can't be used, the certificate stays as it is.
    pub fn refresh(&self) {
        let now = seen(&self.files);
        let mut seen = self.seen.lock();
        if *seen == now {
            return;
        }
        *seen = now;
        match read(&self.files) {
            Ok(config) => {
                self.current.store(config);
                tracing::info!("the certificate was read again");
            }
            Err(error) => tracing::error!("the certificate stays as it is: {error:#}"),
        }
    }
}

fn seen(files: &config::Tls) -> [Option<SystemTime>; 2] {
    [&files.certificate_file, &files.key_file].map(|file| file.metadata().and_then(|metadata| metadata.modified()).ok())
}

fn read(files: &config::Tls) -> anyhow::Result<Arc<ServerConfig>> {
    let says = |setting: &str, file: &PathBuf| format!("tls.{setting} {}", file.display());
    let certificate = || says("certificate_file", &files.certificate_file);
    let key = || says("key_file", &files.key_file);
    let chain: Vec<CertificateDer> = CertificateDer::pem_slice_iter(&pem(&files.certificate_file, &certificate)?)
        .collect::<Result<_, _>>()
        .with_context(|| format!("{} can't be read", certificate()))?;
    ensure!(!chain.is_empty(), "{} holds no certificate in PEM", certificate());
    let secret = PrivateKeyDer::from_pem_slice(&pem(&files.key_file, &key)?)
        .with_context(|| format!("{} can't be read as an unencrypted private key in PEM", key()))?;
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .with_context(|| format!("{} is not for {}", key(), certificate()))?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}

/// Reads a file of the configuration, which `name` names.
fn pem(file: &Path, name: &impl Fn() -> String) -> anyhow::Result<Vec<u8>> {
    file::read(file, PEM_BYTES_MAX).map_err(|error| anyhow!("{} {error}", name()))
}

/// Returns the TLS state of a client's connection. It trusts the machine's authorities, or those in the file that `SSL_CERT_FILE` names.
///
/// # Errors
/// No authorities are found, or the host's name is invalid.
pub fn connect(host: &str) -> anyhow::Result<Connection> {
    connect_with(&client()?, host)
}

/// Returns the settings of clients' connections, for several of them. Reads the authorities.
///
/// # Errors
/// No authorities are found.
pub fn client() -> anyhow::Result<Arc<ClientConfig>> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (trusted, _) = roots.add_parsable_certificates(found.certs);
    ensure!(trusted > 0, "no certificate authorities are known here: install ca-certificates, or name a file of them by SSL_CERT_FILE");
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}

/// Returns the TLS state of one connection to a host.
///
/// # Errors
/// The host's name is invalid.
pub fn connect_with(config: &Arc<ClientConfig>, host: &str) -> anyhow::Result<Connection> {
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).context("TLS needs the server's name")?;
    Ok(ClientConnection::new(config.clone(), name)?.into())
}
