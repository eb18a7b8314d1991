//! `signalpost health`: asks a server whether it answers, for a container's health check. Containers have no curl.

use clap::Args;

use super::ServerFlags;
use super::client::Address;
use crate::config::Config;

#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// Ask whether it accepts new sockets (/readyz), and not only whether it answers (/healthz).
    #[arg(long)]
    ready: bool,
    /// Where the server is; by default at the configuration's `listen`, on this machine.
    #[arg(long, conflicts_with_all = ["listen", "plugins", "config"])]
    url: Option<String>,
    #[command(flatten)]
    server: ServerFlags,
}

/// Ends with success if the server answers with success.
pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let url = match &arguments.url {
        Some(url) => url.clone(),
        None => own_url(&arguments.server.load()?.0),
    };
    // Health is at the root, whatever the base path.
    let address = Address { base_path: String::new(), ..Address::parse(&url)? };
    let path = if arguments.ready { "/readyz" } else { "/healthz" };
    print!("{}", address.get(path)?);
    Ok(())
}

/// Returns where a server with this configuration is found from the same machine.
fn own_url(config: &Config) -> String {
    let mut address = config.listen;
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() { std::net::Ipv4Addr::LOCALHOST.into() } else { std::net::Ipv6Addr::LOCALHOST.into() });
    }
    let scheme = if config.tls.certificate_file.as_os_str().is_empty() { "http" } else { "https" };
    format!("{scheme}://{address}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_asked_where_its_configuration_says() {
        let url = |settings: &str| {
            let flags = settings.parse().unwrap();
            own_url(&Config::load(None, flags, std::iter::empty()).unwrap().0)
        };
        assert_eq!(url(""), "http://127.0.0.1:8080");
        let exposed = "listen_beyond_loopback_without_authentication = true\n";
        assert_eq!(url(&format!("{exposed}listen = \"0.0.0.0:80\"")), "http://127.0.0.1:80");
        assert_eq!(url(&format!("{exposed}listen = \"[::]:80\"")), "http://[::1]:80");
        assert_eq!(url(&format!("{exposed}listen = \"192.0.2.1:80\"")), "http://192.0.2.1:80");
        assert_eq!(url("[tls]\ncertificate_file = \"c\"\nkey_file = \"k\""), "https://127.0.0.1:8080");
    }
}
