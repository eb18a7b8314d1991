//! `signalpost token`: makes a user's token for development, or an API key for a producer or an operator.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use clap::Args;
use jsonwebtoken::{AlgorithmFamily, EncodingKey, Header, encode};
use serde_json::{Map, Value, json};

use super::ServerFlags;
use crate::auth::{api_keys, tokens};
use crate::config::{Scope, Users};

#[derive(Args, Debug)]
#[command(override_usage = "signalpost token [OPTIONS] USER\n       signalpost token --api-key NAME [--scope SCOPE]...")]
pub(super) struct Arguments {
    /// The user's id.
    #[arg(required_unless_present = "api_key", conflicts_with = "api_key")]
    user: Option<String>,
    /// Make an API key of this name instead. Only its digest goes into the configuration.
    #[arg(long, value_name = "NAME")]
    api_key: Option<String>,
    /// What the API key allows: publish, read or operate; publish by default.
    #[arg(long, requires = "api_key", value_parser = scope)]
    scope: Vec<Scope>,
    /// Seconds until the token expires.
    #[arg(long, default_value_t = 3600)]
    lifetime_s: u64,
    /// A further claim, as in role=driver. A value that is valid JSON becomes that JSON.
    #[arg(long = "claim", value_name = "NAME=VALUE")]
    claims: Vec<String>,
    /// The private key (PEM) of the first configured algorithm, unless that is one of HS256, HS384 and HS512.
    #[arg(long, value_name = "FILE")]
    private_key: Option<PathBuf>,
    /// The server's configuration file (TOML); SIGNALPOST_CONFIG by default.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

fn scope(text: &str) -> Result<Scope, String> {
    serde_json::from_value(text.into()).map_err(|_| "a scope is publish, read or operate".to_owned())
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    if let Some(name) = &arguments.api_key {
        let (key, digest) = api_keys::generate();
        println!("{key}");
        let scopes = if arguments.scope.is_empty() { &[Scope::Publish][..] } else { &arguments.scope };
        eprintln!("The key is shown only once. Add this to the server's configuration:\n\n[[auth.keys]]");
        eprintln!("name = {}\nsha256 = \"{digest}\"\nscopes = {}", json!(name), json!(scopes));
        return Ok(());
    }
    let (config, _) = ServerFlags::of(arguments.config.clone()).load()?;
    let signer = Signer::new(config.auth.users, arguments.private_key.as_deref())?;
    println!("{}", signer.sign(arguments.user.as_deref().unwrap_or_default(), arguments.lifetime_s, &arguments.claims)?);
    Ok(())
}

/// Makes tokens that a server with this configuration accepts.
struct Signer {
    users: Users,
    header: Header,
    key: EncodingKey,
}

impl Signer {
    /// Returns a signer for the first configured algorithm.
    ///
    /// # Errors
    /// The server has no token algorithms, or the key that signs can't be read.
    fn new(users: Users, private_key: Option<&Path>) -> anyhow::Result<Signer> {
        let Some(first) = users.algorithms.first() else {
            bail!("\"auth.users.algorithms\" is empty: this server does not check tokens. Name its configuration with --config");
        };
        let algorithm = tokens::algorithm(*first);
        let header = Header { typ: users.token_types.first().filter(|named| !named.is_empty()).cloned(), ..Header::new(algorithm) };
        let key = match (private_key, algorithm.family()) {
            (_, AlgorithmFamily::Hmac) => {
                EncodingKey::from_secret(&tokens::secret(&users).context("\"auth.users.key_files\" names no file with a secret")?)
            }
            (None, _) => {
                bail!("tokens of {algorithm:?} are signed with a private key, which the server doesn't have: name it with --private-key")
            }
            (Some(file), family) => {
                let pem = fs::read(file).with_context(|| format!("can't read {}", file.display()))?;
                let parsed = match family {
                    AlgorithmFamily::Rsa => EncodingKey::from_rsa_pem(&pem),
                    AlgorithmFamily::Ec => EncodingKey::from_ec_pem(&pem),
                    _ => EncodingKey::from_ed_pem(&pem),
                };
                parsed.with_context(|| format!("{} is not a private key for {algorithm:?} in PEM", file.display()))?
            }
        };
        Ok(Signer { users, header, key })
    }

    /// Returns a token for this user with further claims, each as in `role=driver`.
    ///
    /// # Errors
    /// A claim is not `NAME=VALUE`.
    fn sign(&self, user: &str, lifetime_s: u64, further: &[String]) -> anyhow::Result<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let mut claims = Map::new();
        claims.insert(self.users.user_claim.clone(), json!(user));
        claims.insert("iat".to_owned(), json!(now));
        claims.insert("exp".to_owned(), json!(now.saturating_add(lifetime_s)));
        for (name, configured) in [("iss", &self.users.issuers), ("aud", &self.users.audiences)] {
            if let Some(value) = configured.first() {
                claims.insert(name.to_owned(), json!(value));
            }
        }
        for claim in further {
            let (name, value) = claim.split_once('=').with_context(|| format!("the claim \"{claim}\" has no =, as in role=driver"))?;
            claims.insert(name.to_owned(), serde_json::from_str(value).unwrap_or_else(|_| Value::from(value)));
        }
        Ok(encode(&self.header, &claims, &self.key)?)
    }
}
