//! The connection to the provider: verified, and telling it no more than it has to know.

use crate::scene::Scene;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use tollgate_tests::envoy::{Envoy, Origin, Run};
use tollgate_tests::whole::Whole as _;
use tollgate_tests::{Scratch, built};

const POLICY: &str = "
apiVersion: tollgate/v1
kind: Policy
metadata: {name: open}
spec: {scope: global}
";

/// An authority of its own, and a certificate by it for `name`: files `ca.pem`, `certificate.pem` and `key.pem`.
fn write_certificates(folder: &Path, name: &str) {
    let mut authority = CertificateParams::new([]).unwrap();
    // Else both would have the same name, and the certificate would pass for its own issuer.
    authority
        .distinguished_name
        .push(DnType::CommonName, "authority of a test");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let names = vec![name.to_owned()];
    let certificate = CertificateParams::new(names)
        .unwrap()
        .signed_by(&key, &authority)
        .unwrap();
    fs::write(folder.join("ca.pem"), authority.pem()).unwrap();
    fs::write(folder.join("certificate.pem"), certificate.pem()).unwrap();
    fs::write(folder.join("key.pem"), key.serialize_pem()).unwrap();
}

/// TLS in front of a provider that has none: a second Envoy.
fn terminate_tls(folder: &Path, provider: SocketAddr) -> Envoy {
    let file = |name: &str| folder.join(name).display().to_string();
    let (certificate, key) = (file("certificate.pem"), file("key.pem"));
    let (ip, port) = (provider.ip(), provider.port());
    let configuration = format!(
        r#"
admin: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: 0 }} }} }}
static_resources:
  listeners:
    - name: tls
      address: {{ socket_address: {{ address: 127.0.0.1, port_value: 0 }} }}
      filter_chains:
        - transport_socket:
            name: envoy.transport_sockets.tls
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
              common_tls_context:
                tls_certificates: [{{ certificate_chain: {{ filename: "{certificate}" }}, private_key: {{ filename: "{key}" }} }}]
          filters:
            - name: envoy.filters.network.tcp_proxy
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
                stat_prefix: tls
                cluster: provider
  clusters:
    - name: provider
      type: STATIC
      load_assignment:
        cluster_name: provider
        endpoints: [{{ lb_endpoints: [{{ endpoint: {{ address: {{ socket_address: {{ address: {ip}, port_value: {port} }} }} }} }}] }}]
"#
    );
    let run = Run {
        binary: built::envoy().to_owned(),
        folder: folder.to_owned(),
        concurrency: 1,
        environment: Vec::new(),
    };
    Envoy::start(&run, &configuration).unwrap_or_else(|error| panic!("{error:#}"))
}

/// A scene whose provider answers with a certificate for `certified`, by an authority that the gate knows or does not.
fn behind_tls(test: &str, certified: &str, authority_is_known: bool) -> (Scene, Envoy, Scratch) {
    let certificates = Scratch::new(test);
    write_certificates(certificates.path(), certified);
    let mut terminator = None;
    let scene = Scene::start_as(test, POLICY, |plan| {
        let Origin { host: ip, port, .. } = &plan.upstream.origin;
        let provider = SocketAddr::new(ip.parse().unwrap(), *port);
        let terminator = terminator.insert(terminate_tls(certificates.path(), provider));
        let mut origin: Origin = format!("https://localhost:{}", terminator.listen.port())
            .parse()
            .unwrap();
        if !authority_is_known {
            // Another one of the same kind.
            let folder = certificates.path().join("stranger");
            fs::create_dir(&folder).unwrap();
            write_certificates(&folder, certified);
            fs::copy(folder.join("ca.pem"), certificates.path().join("ca.pem")).unwrap();
        }
        origin.certificate_authorities = Some(certificates.path().join("ca.pem"));
        plan.upstream.origin = origin;
    });
    (scene, terminator.unwrap(), certificates)
}

#[test]
fn a_provider_with_its_own_certificate_is_called() {
    let (scene, _terminator, _certificates) = behind_tls("tls", "localhost", true);
    let answer = scene.chat("three words here", &[]);
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(scene.reached().len(), 1);
}

#[test]
fn a_provider_that_nobody_vouches_for_is_not_called() {
    let (scene, _terminator, _certificates) = behind_tls("tls-unknown", "localhost", false);
    let answer = scene.chat("three words here", &[]);
    assert_eq!(answer.status, 503, "{}", answer.body);
    assert!(
        answer.body.contains("CERTIFICATE_VERIFY_FAILED"),
        "{}",
        answer.body
    );
    assert_eq!(scene.reached(), []);
}

#[test]
fn a_provider_with_somebody_elses_certificate_is_not_called() {
    let (scene, _terminator, _certificates) = behind_tls("tls-misnamed", "api.example.com", true);
    let answer = scene.chat("three words here", &[]);
    assert_eq!(answer.status, 503, "{}", answer.body);
    assert!(answer.body.contains("SAN_matcher"), "{}", answer.body);
    assert_eq!(scene.reached(), []);
}

#[test]
fn the_provider_learns_nothing_about_where_an_agent_sits() {
    let scene = Scene::start("upstream-headers", POLICY);
    let answer = scene.chat(
        "three words here",
        &[
            ("x-forwarded-for", "10.1.2.3"),
            ("accept", "application/json"),
        ],
    );
    assert_eq!(answer.status, 200, "{}", answer.body);
    let [received] = &scene.reached()[..] else {
        panic!("one call")
    };
    let names: Vec<&str> = received
        .headers
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    let telling = |name: &&str| {
        name.starts_with("x-forwarded-")
            || name.starts_with("x-envoy-")
            || name.starts_with("x-tollgate-")
    };
    assert_eq!(names.iter().copied().find(telling), None, "{names:?}");
    let provider = scene.provider().address().to_string();
    assert_eq!(received.header("host").collect::<Vec<_>>(), [provider]);
}
