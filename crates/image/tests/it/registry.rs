//! Debian's registry, plain and with TLS, passwords and tokens; skopeo tells whether we are right.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use proa_image::registry::config::RegistrySettings;
use proa_image::registry::{RegistryError, login, logout};
use proa_image::{Error, ErrorKind, Image, PullOptions, push};
use proa_oci::image::Platform;
use proa_oci::reference::{Digest, Reference};

use super::support::{
    DebianRegistry, Packing, Recorder, Reply, Server, TestImage, TestStore, options, registry_options, run,
    serve_image, tarball,
};

fn send(test: &TestStore, source: &str, target: &str, options: &PullOptions) -> Digest {
    push(&test.store, source, &Reference::parse(target).unwrap(), &options.registry, &()).unwrap()
}

#[test]
fn what_is_pushed_is_pulled_with_the_same_digests() {
    let registry = DebianRegistry::plain();
    let (ours, theirs) = (TestStore::new(), TestStore::new());
    let layers = [Packing::Gzip, Packing::Zstd, Packing::Plain, Packing::Gzip];
    let layers: Vec<_> =
        layers.iter().enumerate().map(|(n, packing)| (tarball(n as u64, 20, 3000), *packing)).collect();
    let source = TestImage::new(&layers);
    let image = ours.load(&source, "a:1");
    let name = registry.name("team/a:1");
    assert_eq!(send(&ours, "a:1", &name, &options()), source.digest());
    let raw = run("skopeo", &["inspect", "--raw", "--tls-verify=false", &format!("docker://{name}")]).stdout;
    assert_eq!(raw, source.manifest);
    let pulled = theirs.pull(&name, &options()).unwrap();
    assert_eq!((&pulled.id, &pulled.manifest, pulled.size), (&image.id, &image.manifest, image.size));
    for (a, b) in pulled.layers.iter().zip(&image.layers) {
        assert_eq!(
            fs::read(&a.path).unwrap(),
            fs::read(&b.path).unwrap(),
            "the same tar gives the same layer"
        );
    }
    let expected = format!("{}@{}", registry.name("team/a"), source.digest());
    assert_eq!(theirs.store.repo_digests(&pulled.id).unwrap(), [expected]);
    theirs.assert_sound();
}

#[test]
fn a_second_pull_fetches_nothing() {
    let source = TestImage::small(1);
    let server = Server::start({
        let source = source.clone();
        move |request| serve_image(&source, request)
    });
    let (test, recorder) = (TestStore::new(), Recorder::default());
    let name = server.name("x:1");
    test.pull(&name, &options()).unwrap();
    let blobs = server.requests("/blobs/");
    proa_image::pull(&test.store, &Reference::parse(&name).unwrap(), &options(), &recorder).unwrap();
    assert_eq!(server.requests("/blobs/"), blobs);
    assert_eq!((recorder.count("LayerExists"), recorder.count("LayerStarted")), (2, 0));
}

#[test]
fn dockers_manifests_and_lists_are_pulled() {
    let registry = DebianRegistry::plain();
    let test = TestStore::new();
    let source = TestImage::small(1);
    let archive = test.dir.path().join("a.tar");
    fs::write(&archive, source.archive("a:1")).unwrap();
    let from = format!("oci-archive:{}", archive.display());
    let to = format!("docker://{}", registry.name("v2s2:1"));
    run("skopeo", &["copy", "-q", "--format=v2s2", "--dest-tls-verify=false", &from, &to]);
    let pulled = test.pull(&registry.name("v2s2:1"), &options()).unwrap();
    assert_eq!(pulled.layers.len(), 2);
    // Pushed on, it is still the manifest that came.
    let copied = send(&test, &registry.name("v2s2:1"), &registry.name("copy:1"), &options());
    assert_eq!(copied, pulled.manifest);
    push_list(&registry, &pulled);
    let listed = TestStore::new();
    let image = listed.pull(&registry.name("copy:list"), &options()).unwrap();
    assert_eq!(image.id, pulled.id);
    let digests = listed.store.repo_digests(&image.id).unwrap();
    assert!(!digests[0].ends_with(pulled.manifest.as_str()), "the list's digest is the one users know");
    listed.pull(&digests[0].replace("docker.io/library/", ""), &options()).unwrap();
    let other = PullOptions { platform: Platform::parse("linux/s390x"), ..options() };
    let error = listed.pull(&registry.name("copy:list"), &other).unwrap_err();
    assert!(error.to_string().contains("linux/s390x") && error.to_string().contains("--platform"), "{error}");
    listed.assert_sound();
}

#[test]
fn what_is_pulled_by_digest_goes_by_digest() {
    let source = TestImage::small(1);
    let server = Server::start({
        let source = source.clone();
        move |request| serve_image(&source, request)
    });
    let test = TestStore::new();
    let name = format!("{}@{}", server.name("x"), source.digest());
    let image = test.pull(&name, &options()).unwrap();
    assert!(image.names.is_empty());
    assert_eq!(test.store.resolve(&name).unwrap(), image);
    // The same image under a tag too, which is all that is left when the tag goes.
    test.pull(&server.name("y:1"), &options()).unwrap();
    test.store.remove(&server.name("y:1"), false, &()).unwrap();
    assert_eq!(test.store.resolve(&name).unwrap(), image);
    test.store.remove(&name, false, &()).unwrap();
    test.assert_empty();
}

/// A list of one image, put there with curl, for no tool here makes one without a second registry.
fn push_list(registry: &DebianRegistry, image: &Image) {
    let size = fs::metadata(
        image.layers[0].path.parent().unwrap().with_file_name("blobs/sha256").join(image.manifest.hex()),
    );
    let kind = "application/vnd.docker.distribution.manifest.list.v2+json";
    let host = Platform::host();
    let list = serde_json::json!({"schemaVersion": 2, "mediaType": kind, "manifests": [{
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "digest": image.manifest, "size": size.unwrap().len(),
        "platform": {"architecture": host.architecture, "os": "linux"}}]});
    let url = format!("http://localhost:{}/v2/copy/manifests/list", registry.port);
    let header = format!("Content-Type: {kind}");
    run("curl", &["-sSf", "-X", "PUT", "-H", &header, "--data-binary", &list.to_string(), &url]);
}

/// A registry with TLS and one user, and the CA that vouches for it.
fn with_password() -> DebianRegistry {
    DebianRegistry::start(|dir| {
        make_certificates(dir);
        let hash = run("htpasswd", &["-Bbn", "me", "secret"]).stdout;
        fs::write(dir.join("htpasswd"), hash).unwrap();
        format!(
            "  tls: {{certificate: {0}/cert.pem, key: {0}/key.pem}}\nauth: {{htpasswd: {{realm: r, path: {0}/htpasswd}}}}\n",
            dir.display()
        )
    })
}

fn make_certificates(dir: &Path) {
    let file = |name: &str| dir.join(name).display().to_string();
    let subject = |name: &str| format!("/CN={name}");
    let (ca_key, ca, key, cert, request) =
        (file("ca.key"), file("ca.pem"), file("key.pem"), file("cert.pem"), file("request.pem"));
    let new_key = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    let ca_args = ["-x509", "-days", "2", "-subj", &subject("test CA"), "-keyout", &ca_key, "-out", &ca];
    run("openssl", &[&new_key[..], &ca_args].concat());
    let request_args = ["-subj", &subject("localhost"), "-keyout", &key, "-out", &request];
    run("openssl", &[&new_key[..], &request_args].concat());
    fs::write(dir.join("ext"), "subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")
        .unwrap();
    let sign =
        ["x509", "-req", "-days", "2", "-CAcreateserial", "-in", &request, "-CA", &ca, "-CAkey", &ca_key];
    run("openssl", &[&sign[..], &["-out", &cert, "-extfile", &file("ext")]].concat());
}

#[test]
fn tls_and_a_password() {
    let registry = with_password();
    let test = TestStore::new();
    let source = TestImage::small(1);
    test.load(&source, "a:1");
    let host = format!("localhost:{}", registry.port);
    let name = registry.name("a:1");
    let certs = test.dir.path().join("certs.d");
    fs::create_dir_all(certs.join(&host)).unwrap();
    fs::copy(registry.dir.path().join("ca.pem"), certs.join(&host).join("ca.crt")).unwrap();
    let mut options = options();
    options.registry.cert_dirs = vec![certs];
    options.registry.credentials = Some(test.dir.path().join("docker/config.json"));
    let target = Reference::parse(&name).unwrap();
    let denied = push(&test.store, "a:1", &target, &options.registry, &()).unwrap_err();
    assert_eq!(denied.kind(), ErrorKind::Denied);
    assert!(denied.to_string().contains(&format!("proa login {host}")), "{denied}");
    let wrong = login(&options.registry, &host, "me", "wrong").unwrap_err();
    assert_eq!(wrong.kind(), ErrorKind::Denied, "{wrong}");
    assert!(!test.dir.path().join("docker/config.json").exists());
    login(&options.registry, &host, "me", "secret").unwrap();
    send(&test, "a:1", &name, &options);
    let other = TestStore::new();
    assert_eq!(other.pull(&name, &options).unwrap().id, source.config);
    assert!(logout(&options.registry, &host).unwrap());
    assert_eq!(other.pull(&name, &options).unwrap_err().kind(), ErrorKind::Denied);
    other.assert_sound();
}

#[test]
fn certificates_are_checked() {
    let registry = with_password();
    let test = TestStore::new();
    let name = registry.name("a:1");
    let host = format!("localhost:{}", registry.port);
    let with_ca = |ca: &Path| {
        let mut options = options();
        let settings = RegistrySettings { ca: Some(ca.to_owned()), ..RegistrySettings::default() };
        options.registry.config.registries.insert(host.clone(), settings);
        options
    };
    // Another CA: the certificate is not trusted, and nothing falls back to anything weaker.
    let strange = tempfile::tempdir().unwrap();
    make_certificates(strange.path());
    let error = test.pull(&name, &with_ca(&strange.path().join("ca.pem"))).unwrap_err();
    assert!(matches!(error, Error::Registry(RegistryError::Tls { .. })), "{error}");
    assert!(error.to_string().contains("certs.d"), "{error}");
    assert_eq!(error.to_string().lines().count(), 2);
    let right = with_ca(&registry.dir.path().join("ca.pem"));
    assert_eq!(test.pull(&name, &right).unwrap_err().kind(), ErrorKind::Denied);
    let missing = test.pull(&name, &with_ca(Path::new("/nonexistent/ca.pem"))).unwrap_err();
    assert!(missing.to_string().contains("/nonexistent/ca.pem"), "{missing}");
    test.assert_empty();
}

#[test]
fn plain_http_is_not_spoken_unasked() {
    let registry = DebianRegistry::plain();
    let test = TestStore::new();
    let certificates = tempfile::tempdir().unwrap();
    make_certificates(certificates.path());
    let mut options = options();
    let host = format!("localhost:{}", registry.port);
    let settings =
        RegistrySettings { ca: Some(certificates.path().join("ca.pem")), ..RegistrySettings::default() };
    options.registry.config.registries.insert(host.clone(), settings);
    let error = test.pull(&registry.name("a:1"), &options).unwrap_err();
    assert!(matches!(error, Error::Registry(RegistryError::PlainHttp { .. })), "{error}");
    options.registry.config.registries.get_mut(&host).unwrap().insecure = true;
    assert_eq!(test.pull(&registry.name("a:1"), &options).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn mirrors_are_asked_first_and_the_registry_last() {
    let (registry, mirror) = (DebianRegistry::plain(), DebianRegistry::plain());
    let test = TestStore::new();
    let (source, other) = (TestImage::small(1), TestImage::small(2));
    test.load(&source, "a:1");
    test.load(&other, "b:1");
    send(&test, "a:1", &mirror.name("team/a:1"), &options());
    send(&test, "b:1", &registry.name("team/b:1"), &options());
    let mut options = options();
    let mirrors = vec!["http://127.0.0.1:1".to_owned(), format!("http://localhost:{}", mirror.port)];
    let host = format!("localhost:{}", registry.port);
    let settings = RegistrySettings { mirrors, ..RegistrySettings::default() };
    options.registry.config.registries.insert(host, settings);
    let pulled = TestStore::new();
    let image = pulled.pull(&registry.name("team/a:1"), &options).unwrap();
    assert_eq!(image.id, source.config);
    assert_eq!(image.names, [registry.name("team/a:1")]);
    assert_eq!(pulled.pull(&registry.name("team/b:1"), &options).unwrap().id, other.config);
    let error = pulled.pull(&registry.name("team/c:1"), &options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("mirrors were tried first"), "{error}");
}

/// A server that gives a signed token to who shows the password, or to anyone for `open/` repositories.
fn token_server(dir: &Path) -> Server {
    let dir = dir.to_owned();
    Server::start(move |request| {
        let query = request.path.split_once('?').map_or("", |(_, query)| query);
        let scope = query.split('&').find_map(|pair| pair.strip_prefix("scope=")).unwrap_or_default();
        let scope = scope.replace("%3A", ":").replace("%2F", "/").replace("%2C", ",");
        let known = request.headers.get("authorization").is_some_and(|header| header == "Basic bWU6c2VjcmV0");
        if request.headers.contains_key("authorization") && !known {
            return Reply::new("401 Unauthorized", "{}");
        }
        let mut access = serde_json::json!([]);
        if let Some((name, actions)) =
            scope.strip_prefix("repository:").and_then(|rest| rest.rsplit_once(':'))
            && (known || name.starts_with("open/"))
        {
            let actions: Vec<&str> = actions.split(',').collect();
            access = serde_json::json!([{"type": "repository", "name": name, "actions": actions}]);
        }
        let token = sign(&dir, &access);
        Reply::ok(serde_json::json!({"token": token, "expires_in": 300}).to_string())
    })
}

/// A token as the registry's token specification has it, signed by the key whose certificate the registry trusts.
fn sign(dir: &Path, access: &serde_json::Value) -> String {
    let pem = fs::read_to_string(dir.join("token.pem")).unwrap();
    let der: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    STANDARD.decode(&der).unwrap();
    let header = serde_json::json!({"typ": "JWT", "alg": "RS256", "x5c": [der]});
    let claims = serde_json::json!({
        "iss": "tester", "sub": "me", "aud": "registry", "exp": 4_000_000_000_u64, "nbf": 1, "iat": 1, "jti": "x",
        "access": access,
    });
    let part = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let text = format!("{}.{}", part(&header), part(&claims));
    let key = dir.join("token.key");
    let mut openssl = Command::new("openssl")
        .args(["dgst", "-sha256", "-sign"])
        .arg(&key)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut openssl.stdin.take().unwrap(), text.as_bytes()).unwrap();
    let signature = openssl.wait_with_output().unwrap().stdout;
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
}

#[test]
fn tokens() {
    let keys = tempfile::tempdir().unwrap();
    let file = |name: &str| keys.path().join(name).display().to_string();
    let (key, pem) = (file("token.key"), file("token.pem"));
    let args = [
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=tester",
        "-keyout",
        &key,
        "-out",
        &pem,
    ];
    run("openssl", &args);
    let server = token_server(keys.path());
    let registry = DebianRegistry::start(|_| {
        format!(
            "auth: {{token: {{realm: \"http://localhost:{}/token\", service: registry, issuer: tester, rootcertbundle: {pem}}}}}\n",
            server.port
        )
    });
    let test = TestStore::new();
    let source = TestImage::small(1);
    test.load(&source, "a:1");
    let host = format!("localhost:{}", registry.port);
    let mut options = options();
    options.registry.credentials = Some(test.dir.path().join("config.json"));
    assert_eq!(test.pull(&registry.name("team/a:1"), &options).unwrap_err().kind(), ErrorKind::Denied);
    assert_eq!(login(&options.registry, &host, "me", "wrong").unwrap_err().kind(), ErrorKind::Denied);
    login(&options.registry, &host, "me", "secret").unwrap();
    send(&test, "a:1", &registry.name("team/a:1"), &options);
    send(&test, "a:1", &registry.name("open/a:1"), &options);
    let other = TestStore::new();
    assert_eq!(other.pull(&registry.name("team/a:1"), &options).unwrap().id, source.config);
    // Without a password, what is open to all.
    let before = server.requests("/token");
    let anonymous = PullOptions { registry: registry_options(), ..options.clone() };
    assert_eq!(TestStore::new().pull(&registry.name("open/a:1"), &anonymous).unwrap().id, source.config);
    assert_eq!(server.requests("/token") - before, 1, "a token is good for all requests of its scope");
    other.assert_sound();
}
