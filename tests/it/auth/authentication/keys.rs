use super::*;

#[tokio::test]
async fn tokens_and_keys_are_never_in_the_log() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("secret"), SECRET).unwrap();
    let key = "signalpost_0123456789abcdef";
    let settings = format!(
        "[log]\nlevel = \"trace\"\n[[auth.keys]]\nname = \"x\"\nsha256 = \"{}\"\nscopes = [\"publish\"]\n\
         [auth.users]\nalgorithms = [\"HS256\"]\nkey_files = [{:?}]\ntoken_in_query = true\n",
        signalpost::internals::benching::digest(key),
        dir.path().join("secret")
    );
    let plugins = crate::support::plugins(&["pooling", "chat"]);
    let process = crate::support::process::ServerProcess::start(plugins.path(), &settings);
    let server = &process.server;
    let good = signed(&json!({ "sub": "1001", "exp": now() + 60 }));
    let bad = signed(&json!({ "sub": "1002", "exp": now() + 60 }));
    let late = signed(&json!({ "sub": "1001", "exp": now() + 61 }));
    let mut open = Vec::new();
    for token in [&good, &bad] {
        open.push(ask(server, "1001", &bearer(token)).await);
        open.push(ask(server, "1001", &[("sec-websocket-protocol", format!("signalpost.v1, signalpost.token.{token}"))]).await);
        open.push(ask(server, &format!("1001?access_token={token}"), &[]).await);
        let mut by_frame = ask(server, "1001", &[]).await.unwrap();
        by_frame.send_json(json!({ "type": "auth", "token": token })).await;
        open.push(Ok(by_frame));
    }
    for client in open.iter_mut().take(4) {
        client.as_mut().ok().unwrap().send_json(json!({ "type": "auth", "token": late })).await;
    }
    let mut refused = open.pop().unwrap().ok().unwrap();
    assert_eq!(refused.closed().await.0, 4205);
    for shown in [key, "signalpost_fedcba9876543210", &good] {
        server.http.post(server.url("/users/1001/messages")).bearer_auth(shown).json(&1).send().await.unwrap();
    }
    assert!(process.logged("DEBUG") > 5, "{}", process.log());
    let log = process.log();
    for secret in [&good, &bad, &late, key, "signalpost_fedcba9876543210", SECRET] {
        // The signature is the part that lets somebody in.
        let secret = secret.rsplit('.').next().unwrap();
        assert!(!log.contains(secret), "{secret} is in the log");
    }
}

/// Whether a server starts with these algorithms and the keys in this file.
async fn starts(algorithms: &str, file: &Path) -> Result<(), String> {
    let toml = format!("[auth.users]\nalgorithms = [{algorithms}]\nkey_files = [{file:?}]\n");
    let server = signalpost::server::Server::new(crate::support::config(&toml)).await;
    server.map(drop).map_err(|error| format!("{error:#}"))
}

#[tokio::test]
async fn weak_secrets_and_keys_are_refused_at_the_start() {
    use ::base64::Engine as _;
    let base64 = |bytes: &[u8]| ::base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(bytes);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("key");
    let private = dir.path().join("private.pem");
    openssl(&["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024", "-out", private.to_str().unwrap()]);
    let public = dir.path().join("public.pem");
    openssl(&["pkey", "-in", private.to_str().unwrap(), "-pubout", "-out", public.to_str().unwrap()]);
    let pem = std::fs::read_to_string(&public).unwrap();
    let rsa = |modulus: &[u8]| json!({ "keys": [{ "kty": "RSA", "alg": "RS256", "n": base64(modulus), "e": "AQAB" }] }).to_string();
    let oct = json!({ "keys": [{ "kty": "oct", "alg": "HS256", "k": base64(b"short and weak") }] }).to_string();
    let weak = [
        ("\"HS256\"", "", "weak secret of 0 bytes"),
        ("\"HS256\"", "secret", "weak secret of 6 bytes"),
        ("\"HS256\"", "cKq8Zr2mW5xT1vB9nJ4hL7pD3fG6sA0", "weak secret of 31 bytes; take at least 32"),
        ("\"HS256\"", "passwordpasswordpasswordpassword", "weak secret"),
        ("\"HS256\", \"HS512\"", SECRET, "take at least 64"),
        ("\"HS256\"", &oct, "weak secret of 14 bytes"),
        ("\"RS256\"", &pem, "fewer than 2048 bits"),
        ("\"RS256\"", &rsa(&[0xAB; 128]), "fewer than 2048 bits"),
        ("\"RS256\"", &rsa(&[vec![0; 200], vec![0xAB; 128]].concat()), "fewer than 2048 bits"),
        ("\"RS256\"", &std::fs::read_to_string(&private).unwrap(), "private key"),
        ("\"RS256\"", SECRET, "is a secret"),
    ];
    for (algorithms, key, says) in weak {
        std::fs::write(&file, key).unwrap();
        let said = starts(algorithms, &file).await.expect_err(key);
        assert!(said.contains(says), "{said}");
    }
    for (algorithms, key) in [("\"HS256\"", SECRET), ("\"RS256\"", &rsa(&[0xAB; 256]))] {
        std::fs::write(&file, key).unwrap();
        assert_eq!(starts(algorithms, &file).await, Ok(()), "{key}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_makes_tokens_and_keys_that_a_server_takes() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let make = |arguments: &[&str]| {
        let output = crate::support::process::signalpost().arg("token").args(arguments).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        assert!(output.status.success(), "{}", text(output.stderr));
        (text(output.stdout).trim().to_owned(), text(output.stderr))
    };
    let (key, says) = make(&["--api-key", "watcher", "--scope", "read"]);
    let (_, settings) = says.split_once("\n\n").unwrap();
    std::fs::write(file("secret"), SECRET).unwrap();
    openssl(&["genpkey", "-algorithm", "ed25519", "-out", &file("private.pem")]);
    openssl(&["pkey", "-in", &file("private.pem"), "-pubout", "-out", &file("public.pem")]);
    let rules = "issuers = [\"https://id.example.com\"]\naudiences = [\"signalpost\"]\nclaims = [\"role\"]\nuser_claim = \"uid\"";
    for (algorithm, keys, further) in [("HS256", "secret", &[][..]), ("EdDSA", "public.pem", &["--private-key", &file("private.pem")][..])]
    {
        let toml = format!("{settings}[auth.users]\nalgorithms = [{algorithm:?}]\nkey_files = [{:?}]\n{rules}\n", file(keys));
        std::fs::write(file("signalpost.toml"), &toml).unwrap();
        let server = TestServer::with(&toml).await;
        let config = file("signalpost.toml");
        let (token, _) = make(&[&["1001", "--claim", "role=driver", "--config", &config][..], further].concat());
        let _client = ask(&server, "1001", &bearer(&token)).await.unwrap_or_else(|(_, body)| panic!("{algorithm}: {body}"));
        assert_eq!(ask(&server, "1002", &bearer(&token)).await.err().unwrap().0, 401);
        let presence = server.http.get(server.url("/users/1001")).bearer_auth(&key).send().await.unwrap();
        let presence: Value = presence.json().await.unwrap();
        assert_eq!(presence["sessions"][0]["attributes"]["role"], "driver", "{presence}");
        let posted = server.http.post(server.url("/users/1001/messages")).bearer_auth(&key).json(&1).send().await.unwrap();
        assert_eq!(posted.status(), 401, "the key may read only");
    }
}

#[tokio::test]
async fn a_server_that_others_reach_and_that_asks_nobody_says_so_everywhere() {
    let plugins = crate::support::plugins(&["pooling"]);
    let says = "anybody who reaches this server may connect as any user, publish and operate";
    let open = crate::support::process::ServerProcess::listening(
        "0.0.0.0:0",
        plugins.path(),
        "listen_beyond_loopback_without_authentication = true",
    );
    assert_eq!(open.logged(says), 1, "{}", open.log());
    let readyz = async |server: &TestServer| {
        let answer = server.http.get(format!("http://{}/readyz", server.address)).send().await.unwrap();
        answer.text().await.unwrap()
    };
    assert_eq!(readyz(&open.server).await, format!("ready\n{says}\n"));
    assert_eq!(open.server.metric("signalpost_exposed").await, 1.0);
    let here = TestServer::start().await;
    assert_eq!((readyz(&here).await, here.metric("signalpost_exposed").await), ("ready\n".to_owned(), 0.0));
    let mut refused = crate::support::process::signalpost();
    let output = refused.args(["serve", "--listen", "0.0.0.0:0", "--plugins"]).arg(plugins.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("listen_beyond_loopback_without_authentication"), "{said}");
}

#[tokio::test]
async fn keys_are_taken_when_their_file_changes_and_stay_when_the_change_is_bad() {
    let dir = tempfile::tempdir().unwrap();
    let server = asking(dir.path(), "", "[plugins]\nwatch_interval_ms = 20").await;
    let old = signed(&good());
    ask(&server, "1001", &bearer(&old)).await.unwrap();
    std::fs::write(dir.path().join("secret"), "short").unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    ask(&server, "1001", &bearer(&old)).await.expect("a weak secret is not taken");
    let rotated = "9f2Lq7Xb4Rt6Yw1Zc8Vn3Mk5Jh0Gd2SaPo";
    std::fs::write(dir.path().join("secret"), rotated).unwrap();
    let new = signed_with(rotated, &good());
    timeout(SOON, async {
        while ask(&server, "1001", &bearer(&new)).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
    assert_eq!(ask(&server, "1001", &bearer(&old)).await.err().unwrap().0, 401);
}

#[tokio::test]
async fn public_keys_of_each_kind_verify_and_a_public_key_is_no_secret() {
    let dir = tempfile::tempdir().unwrap();
    let kinds: [(&str, Algorithm, &[&str]); 4] = [
        ("RS256", Algorithm::RS256, &["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]),
        ("PS256", Algorithm::PS256, &["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]),
        ("ES256", Algorithm::ES256, &["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]),
        ("EdDSA", Algorithm::EdDSA, &["genpkey", "-algorithm", "ed25519"]),
    ];
    for (name, algorithm, make) in kinds {
        let private = dir.path().join(format!("{name}.pem"));
        let public = dir.path().join(format!("{name}.pub"));
        openssl(&[make, &["-out", private.to_str().unwrap()]].concat());
        openssl(&["pkey", "-in", private.to_str().unwrap(), "-pubout", "-out", public.to_str().unwrap()]);
        let toml = format!("[auth.users]\nalgorithms = [{name:?}]\nkey_files = [{:?}]\n", public.to_str().unwrap());
        let server = TestServer::with(&toml).await;
        let pem = std::fs::read(&private).unwrap();
        let key = match algorithm {
            Algorithm::ES256 => EncodingKey::from_ec_pem(&pem),
            Algorithm::EdDSA => EncodingKey::from_ed_pem(&pem),
            _ => EncodingKey::from_rsa_pem(&pem),
        };
        let claims = json!({ "sub": 1001, "exp": now() + 60 });
        let token = encode(&Header::new(algorithm), &claims, &key.unwrap()).unwrap();
        ask(&server, "1001", &bearer(&token)).await.unwrap_or_else(|(_, body)| panic!("{name}: {body}"));
        let confused = signed_with(&std::fs::read_to_string(&public).unwrap(), &claims);
        assert_eq!(ask(&server, "1001", &bearer(&confused)).await.err().unwrap().0, 401, "{name}");
        let for_others = json!({ "sub": 1001, "exp": now() + 60, "aud": "billing" });
        let key = if name == "EdDSA" { EncodingKey::from_ed_pem(&pem).unwrap() } else { continue };
        let token = encode(&Header::new(algorithm), &for_others, &key).unwrap();
        assert_eq!(ask(&server, "1001", &bearer(&token)).await.err().unwrap().0, 401, "an audience that is not ours");
    }
}

/// A modulus is a number: issuers who write numbers with a sign put a zero byte before it.
#[tokio::test]
async fn an_rsa_key_with_a_leading_zero_verifies() {
    let dir = tempfile::tempdir().unwrap();
    let (private, set) = (dir.path().join("private.pem"), dir.path().join("keys.json"));
    openssl(&["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", private.to_str().unwrap()]);
    let modulus = std::process::Command::new("openssl").args(["rsa", "-noout", "-modulus", "-in"]).arg(&private).output().unwrap();
    let digits = String::from_utf8(modulus.stdout).unwrap();
    let digits = digits.trim().strip_prefix("Modulus=").unwrap();
    let modulus: Vec<u8> = (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect();
    assert_eq!(modulus.len(), 256);
    let key = EncodingKey::from_rsa_pem(&std::fs::read(&private).unwrap()).unwrap();
    let token = encode(&Header::new(Algorithm::RS256), &json!({ "sub": 1001, "exp": now() + 60 }), &key).unwrap();
    for (zeros, exponent) in [(0, "AQAB"), (1, "AQAB"), (3, "AAEAAQ")] {
        use ::base64::Engine as _;
        let n = ::base64::prelude::BASE64_URL_SAFE_NO_PAD.encode([vec![0; zeros], modulus.clone()].concat());
        std::fs::write(&set, json!({ "keys": [{ "kty": "RSA", "n": n, "e": exponent }] }).to_string()).unwrap();
        let server = TestServer::with(&format!("[auth.users]\nalgorithms = [\"RS256\"]\nkey_files = [{set:?}]\n")).await;
        ask(&server, "1001", &bearer(&token)).await.unwrap_or_else(|(_, body)| panic!("{zeros} zeros: {body}"));
    }
}

fn openssl(arguments: &[&str]) {
    let made = std::process::Command::new("openssl").args(arguments).output().expect("openssl is installed");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

#[tokio::test]
async fn a_key_does_what_its_scopes_say_and_two_may_be_good_at_once() {
    let digest = |key: &str| {
        use sha2::Digest as _;
        sha2::Sha256::digest(key).iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let key = |name: &str, scopes: &str| format!("[[auth.keys]]\nname = \"{name}\"\nsha256 = \"{}\"\nscopes = [{scopes}]\n", digest(name));
    let toml = [key("old", "\"publish\""), key("new", "\"publish\""), key("eyes", "\"read\""), key("hands", "\"operate\"")].concat();
    let server = TestServer::with(&toml).await;
    let ask = async |method: &str, path: &str, key: Option<&str>| {
        let url = if path == "/metrics" || path == "/healthz" { format!("http://{}{path}", server.address) } else { server.url(path) };
        let mut request = server.http.request(method.parse().unwrap(), url).json(&json!({ "type": "x", "data": {} }));
        if let Some(key) = key {
            request = request.bearer_auth(key);
        }
        request.send().await.unwrap().status().as_u16()
    };
    for (method, path, good, bad) in [
        ("POST", "/events", "old", "eyes"),
        ("POST", "/events", "new", "hands"),
        ("POST", "/users/1/messages", "new", "eyes"),
        ("POST", "/events?explain=true", "old", "eyes"),
        ("POST", "/users/%31/messages?ttl_ms=1", "old", "hands"),
        ("GET", "/users/1", "eyes", "old"),
        ("GET", "/policies", "eyes", "hands"),
        ("GET", "/dead-letters", "eyes", "new"),
        ("GET", "/metrics", "eyes", "old"),
        ("DELETE", "/users/1/sessions", "hands", "eyes"),
        ("POST", "/policies/reload", "hands", "eyes"),
        ("DELETE", "/dead-letters", "hands", "old"),
    ] {
        assert!(ask(method, path, Some(good)).await < 300, "{method} {path} with {good}");
        for refused in [None, Some(bad), Some(""), Some("ol"), Some("oldd"), Some(&*digest(good))] {
            assert_eq!(ask(method, path, refused).await, 401, "{method} {path} with {refused:?}");
        }
    }
    assert_eq!(ask("GET", "/healthz", None).await, 200);
    let mut anybody = server.connect("9").await;
    assert_eq!(server.http.post(server.url("/users/9/messages")).bearer_auth("new").json(&1).send().await.unwrap().status(), 202);
    assert_eq!(anybody.json().await, json!(1));
}

#[tokio::test]
async fn operators_may_have_an_address_of_their_own() {
    let server = TestServer::with("operate_listen = \"127.0.0.1:0\"").await;
    let operators = TestServer::elsewhere(server.operators);
    let mut client = server.connect("1001").await;
    server.post("/users/1001/messages", json!(1)).await;
    assert_eq!(client.json().await, json!(1));
    assert_eq!(operators.get("/users/1001").await["sessions"].as_array().unwrap().len(), 1);
    assert_eq!(operators.metric("signalpost_sessions_opened_total").await, 1.0);
    let status = async |server: &TestServer, path: &str| server.http.get(server.url(path)).send().await.unwrap().status().as_u16();
    for path in ["/users/1001", "/policies", "/dead-letters", "/../../metrics"] {
        assert_eq!(status(&server, path).await, 404, "{path} is not for clients");
        assert_eq!(status(&operators, path).await, 200, "{path}");
    }
    for path in ["/events", "/users/1001/messages"] {
        let status = operators.http.post(operators.url(path)).json(&json!({"type": "x"})).send().await.unwrap().status();
        assert_eq!(status, 404, "{path} is not for operators");
    }
    for server in [&server, &operators] {
        assert_eq!(status(server, "/../../readyz").await, 200);
    }
}
