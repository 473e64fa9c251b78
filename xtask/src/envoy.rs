//! The reference Envoy: `envoy/gate.yaml` filled in, validated, started, asked.

use std::ffi::OsString;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::http;
use crate::process::{Process, capture};

const TEMPLATE: &str = include_str!("../../envoy/gate.yaml");

/// Compiling the filter takes Envoy up to 2 s on an idle machine; test machines are not idle.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// Everything that one gate's Envoy is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where agents connect. Port 0 lets Envoy take a free one; no other way is safe, since Envoy shares its ports (SO_REUSEPORT)
    /// and a second process on the same one would silently get half of the traffic.
    pub listen: SocketAddr,
    /// Envoy's admin interface. Port 0 as above. Keep it on the loopback: it can stop Envoy.
    pub admin: SocketAddr,
    /// The compiled filter.
    pub filter: PathBuf,
    /// What the filter's configuration has as `gate`: the engine's gate settings as JSON. Secrets are named in it (`env:NAME`) and stand in [`Run::environment`].
    pub configuration: Value,
    /// Where allowed calls go.
    pub upstream: Origin,
    /// Where bundles, leases and audit batches are exchanged.
    pub control_plane: Origin,
    /// The access log, one JSON object per line. `/dev/stdout` works.
    pub access_log: PathBuf,
}

impl Settings {
    /// Fills in the template.
    ///
    /// # Errors
    /// When a path is not UTF-8, or TLS is wanted and no list of certificate authorities is found.
    pub fn render(&self) -> Result<String> {
        let values = [
            ("LISTEN_ADDRESS", self.listen.ip().to_string()),
            ("LISTEN_PORT", self.listen.port().to_string()),
            ("ADMIN_ADDRESS", self.admin.ip().to_string()),
            ("ADMIN_PORT", self.admin.port().to_string()),
            ("FILTER_WASM", text(&self.filter)?),
            (
                "GATE_CONFIGURATION",
                json!({
                    "gate": self.configuration,
                    "control_plane_authority": self.control_plane.authority(),
                })
                .to_string(),
            ),
            ("UPSTREAM_HOST", self.upstream.host.clone()),
            ("UPSTREAM_PORT", self.upstream.port.to_string()),
            ("UPSTREAM_AUTHORITY", self.upstream.authority()),
            (
                "UPSTREAM_TRANSPORT_SOCKET",
                self.upstream.transport_socket()?.to_string(),
            ),
            ("CONTROL_PLANE_HOST", self.control_plane.host.clone()),
            ("CONTROL_PLANE_PORT", self.control_plane.port.to_string()),
            (
                "CONTROL_PLANE_TRANSPORT_SOCKET",
                self.control_plane.transport_socket()?.to_string(),
            ),
            ("ACCESS_LOG", text(&self.access_log)?),
        ];
        // The explanation on top speaks of names, so it is left out. One pass: what is inserted is not searched for names.
        let mut rest = TEMPLATE
            .find("\nadmin:")
            .map_or(TEMPLATE, |start| &TEMPLATE[start..]);
        let mut rendered = String::with_capacity(2 * TEMPLATE.len());
        while let Some((before, after)) = rest.split_once("${") {
            let (name, behind) = after
                .split_once('}')
                .context("envoy/gate.yaml has a `${` without its `}`")?;
            let (_, value) = values
                .iter()
                .find(|(known, _)| *known == name)
                .with_context(|| {
                    format!("envoy/gate.yaml asks for ${{{name}}}, which nothing fills in")
                })?;
            rendered.push_str(before);
            rendered.push_str(value);
            rest = behind;
        }
        rendered.push_str(rest);
        Ok(rendered)
    }
}

/// Scheme, host and port of a URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Whether the connection is TLS, verified.
    pub tls: bool,
    /// A file of certificate authorities to verify it against, in PEM; the system's without it.
    pub certificate_authorities: Option<PathBuf>,
    /// A DNS name or an IPv4 address.
    pub host: String,
    /// The port, explicit or the scheme's own.
    pub port: u16,
}

impl Origin {
    /// Host and port as a `host` header spells them: the scheme's own port is left out.
    #[must_use]
    pub fn authority(&self) -> String {
        match (self.tls, self.port) {
            (true, 443) | (false, 80) => self.host.clone(),
            _ => format!("{}:{}", self.host, self.port),
        }
    }

    /// As a URL, without a path.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}", self.authority())
    }

    fn transport_socket(&self) -> Result<Value> {
        if !self.tls {
            return Ok(json!({
                "name": "envoy.transport_sockets.raw_buffer",
                "typed_config": {"@type": "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"},
            }));
        }
        let authorities = match &self.certificate_authorities {
            Some(file) => file
                .to_str()
                .with_context(|| format!("`{}` is not UTF-8", file.display()))?
                .to_owned(),
            None => system_authorities()?,
        };
        Ok(json!({
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                "sni": self.host,
                "common_tls_context": {
                    "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
                    "validation_context": {
                        "trusted_ca": {"filename": authorities},
                        "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": self.host}}],
                    },
                },
            },
        }))
    }
}

impl FromStr for Origin {
    type Err = anyhow::Error;

    fn from_str(url: &str) -> Result<Self> {
        let (tls, rest) = match (url.strip_prefix("https://"), url.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (_, Some(rest)) => (false, rest),
            _ => bail!("`{url}` is no URL of an upstream: it starts with https:// or http://"),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        ensure!(
            !authority.contains(['/', '?', '#', '@']),
            "`{url}` has more than scheme, host and port: the gate passes paths on as the agent sends them"
        );
        let (host, port) = match authority.split_once(':') {
            Some((host, port)) => (
                host,
                port.parse()
                    .with_context(|| format!("`{port}` in `{url}` is no port"))?,
            ),
            None => (authority, if tls { 443 } else { 80 }),
        };
        let is_name = |host: &str| {
            host.bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'))
        };
        ensure!(
            !host.is_empty() && is_name(host),
            "`{host}` in `{url}` is neither a DNS name nor an IPv4 address"
        );
        ensure!(
            !tls || host.parse::<IpAddr>().is_err(),
            "`{url}` has an address where a certificate has a name: write the host's DNS name"
        );
        Ok(Self {
            tls,
            certificate_authorities: None,
            host: host.to_owned(),
            port,
        })
    }
}

impl From<SocketAddr> for Origin {
    fn from(address: SocketAddr) -> Self {
        Self {
            tls: false,
            certificate_authorities: None,
            host: address.ip().to_string(),
            port: address.port(),
        }
    }
}

/// A running Envoy.
#[derive(Debug)]
pub struct Envoy {
    /// The process, for tests that kill it.
    pub process: Process,
    /// Where agents connect, with the real port.
    pub listen: SocketAddr,
    /// The admin interface, with the real port.
    pub admin: SocketAddr,
}

/// How to run an Envoy, beside what it is told.
#[derive(Clone, Debug)]
pub struct Run {
    /// The binary, from [`crate::tools::envoy`].
    pub binary: PathBuf,
    /// An existing folder of this run's own: configuration, logs.
    pub folder: PathBuf,
    /// Worker threads.
    pub concurrency: u32,
    /// Environment variables to add: the secrets that the gate's settings name, a test's clock.
    pub environment: Vec<(OsString, OsString)>,
}

impl Envoy {
    /// Starts Envoy on a configuration, such as [`Settings::render`] gives, and waits until it serves.
    ///
    /// # Errors
    /// When Envoy refuses its configuration or does not come up; with the end of its log.
    pub fn start(run: &Run, configuration: &str) -> Result<Self> {
        let configuration = write_configuration(&run.folder, configuration)?;
        let admin_file = run.folder.join("admin-address");
        let _ = fs::remove_file(&admin_file);
        let mut command = Command::new(&run.binary);
        command
            .arg("--config-path")
            .arg(&configuration)
            .arg("--admin-address-path")
            .arg(&admin_file)
            .args(["--concurrency", &run.concurrency.to_string()])
            // Else Envoy ends with the shell that started it.
            .arg("--disable-hot-restart")
            .args([
                "--log-level",
                "warning",
                "--component-log-level",
                "wasm:info",
            ])
            // The default of 10 s loses the last lines at a stop, and makes whoever watches the access log wait.
            .args(["--file-flush-interval-msec", "200"])
            .envs(run.environment.iter().map(|(name, value)| (name, value)));
        let mut process = Process::spawn("Envoy", command, &run.folder.join("envoy.log"))?;
        let admin: SocketAddr =
            process.wait_until("Envoy's admin address", START_DEADLINE, || {
                fs::read_to_string(&admin_file).ok()?.trim().parse().ok()
            })?;
        process.wait_until("Envoy to be ready", START_DEADLINE, || {
            http::get(&format!("http://{admin}/ready"))
                .ok()
                .filter(|response| response.status == 200)
        })?;
        let listeners: Value = serde_json::from_str(
            &http::get(&format!("http://{admin}/listeners?format=json"))?.body,
        )?;
        let address = &listeners["listener_statuses"][0]["local_address"]["socket_address"];
        let ip = address["address"].as_str().and_then(|ip| ip.parse().ok());
        let port = address["port_value"]
            .as_u64()
            .and_then(|port| u16::try_from(port).ok());
        let (Some(ip), Some(port)) = (ip, port) else {
            bail!("Envoy does not say where it listens")
        };
        Ok(Self {
            process,
            listen: SocketAddr::new(ip, port),
            admin,
        })
    }

    /// Waits until the gate runs a bundle; before, it denies everything.
    ///
    /// # Errors
    /// When it has none at the deadline; with the end of Envoy's log.
    pub fn wait_for_bundle(&mut self, deadline: Duration) -> Result<()> {
        let url = format!(
            "http://{}/stats/prometheus?filter=tollgate_bundle_revision",
            self.admin
        );
        self.process
            .wait_until("the gate's first bundle", deadline, || {
                let text = http::get(&url).ok()?.body;
                let value = text
                    .lines()
                    .find(|line| line.starts_with("tollgate_bundle_revision"))?
                    .rsplit(' ')
                    .next()?;
                (value.parse::<u64>().ok()? > 0).then_some(())
            })
    }

    /// The URL of `path` at the gate.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.listen)
    }

    /// Metrics as Prometheus would scrape them.
    ///
    /// # Errors
    /// When the admin interface does not answer.
    pub fn prometheus(&self) -> Result<String> {
        Ok(http::get(&format!("http://{}/stats/prometheus", self.admin))?.body)
    }

    /// One counter or gauge by its Envoy name, for example `http.gate.downstream_rq_2xx`; `None` while nothing has counted on it.
    ///
    /// # Errors
    /// When the admin interface does not answer.
    pub fn stat(&self, name: &str) -> Result<Option<u64>> {
        let text = http::get(&format!("http://{}/stats?usedonly", self.admin))?.body;
        Ok(text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")?.parse().ok()))
    }
}

/// Has Envoy check a configuration, the filter's own check included: the VM is really started.
///
/// # Errors
/// When Envoy refuses it.
pub fn validate(run: &Run, configuration: &str) -> Result<()> {
    let configuration = write_configuration(&run.folder, configuration)?;
    capture(
        Command::new(&run.binary)
            .args([
                "--mode",
                "validate",
                "--log-level",
                "warning",
                "--config-path",
            ])
            .arg(configuration)
            .envs(run.environment.iter().map(|(name, value)| (name, value))),
    )?;
    Ok(())
}

fn write_configuration(folder: &Path, configuration: &str) -> Result<PathBuf> {
    let path = folder.join("envoy.yaml");
    fs::write(&path, configuration)
        .with_context(|| format!("cannot write `{}`", path.display()))?;
    Ok(path)
}

fn text(path: &Path) -> Result<String> {
    let text = path
        .to_str()
        .with_context(|| format!("`{}` is not UTF-8", path.display()))?;
    // The same escapes as JSON's, without its quotes: the template has them.
    let quoted = Value::from(text).to_string();
    Ok(quoted[1..quoted.len() - 1].to_owned())
}

/// The system's list, where the common systems keep it. `SSL_CERT_FILE` wins, as in OpenSSL.
fn system_authorities() -> Result<String> {
    const KNOWN: [&str; 4] = [
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/pki/tls/certs/ca-bundle.crt",
        "/etc/ssl/cert.pem",
        "/etc/ssl/ca-bundle.pem",
    ];
    std::env::var("SSL_CERT_FILE")
        .ok()
        .into_iter()
        .chain(KNOWN.map(str::to_owned))
        .find(|path| Path::new(path).is_file())
        .context("no list of certificate authorities found: name one in SSL_CERT_FILE")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            listen: ([127, 0, 0, 1], 0).into(),
            admin: ([127, 0, 0, 1], 0).into(),
            filter: "/tmp/a \"quoted\" folder/filter.wasm".into(),
            configuration: json!({"workspace": "${ACCESS_LOG}"}),
            upstream: "http://localhost:8080".parse().unwrap(),
            control_plane: SocketAddr::from(([127, 0, 0, 1], 9000)).into(),
            access_log: "/dev/stdout".into(),
        }
    }

    #[test]
    fn every_name_is_filled_in_once_and_values_are_left_alone() {
        let rendered = settings().render().unwrap();
        assert!(
            rendered.contains(r#"filename: "/tmp/a \"quoted\" folder/filter.wasm""#),
            "{rendered}"
        );
        assert!(
            rendered.contains(r#"{"workspace":"${ACCESS_LOG}"}"#),
            "{rendered}"
        );
        assert_eq!(rendered.matches("${").count(), 1, "{rendered}");
    }

    #[test]
    fn origins_are_scheme_host_and_port_only() {
        let origin = |url: &str| {
            let Origin {
                tls, host, port, ..
            } = url.parse().unwrap();
            (tls, host, port)
        };
        assert_eq!(
            origin("https://api.openai.com"),
            (true, "api.openai.com".to_owned(), 443)
        );
        assert_eq!(
            origin("http://127.0.0.1:8080/"),
            (false, "127.0.0.1".to_owned(), 8080)
        );
        let authority = |url: &str| url.parse::<Origin>().unwrap().authority();
        assert_eq!(authority("https://api.openai.com"), "api.openai.com");
        assert_eq!(authority("http://localhost:8080"), "localhost:8080");
        for wrong in [
            "api.openai.com",
            "https://",
            "https://host/v1",
            "https://user@host",
            "https://127.0.0.1",
            "https://host:99999",
            "https://a\"b",
        ] {
            assert!(wrong.parse::<Origin>().is_err(), "{wrong} was accepted");
        }
    }
}
