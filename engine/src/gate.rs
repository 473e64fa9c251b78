//! What one enforcement point knows: its settings, its verified bundle, and what it has worked out from them.

use crate::{
    automaton::{Automaton, Unreadable},
    bundle::{Bundle, Data, Document, Documents, InstallError, Payload, Unusable},
    decide,
    envelope::PublicKey,
    facts::{self, Facts, Upstream, normal_host},
    identity::{Caller, IdentityError, TokenCache},
    journal::hmac,
    json,
    meter::Provider,
    redact::Masker,
    scan::{self, Hits, Scanner},
    sift::Watch,
    time::Time,
};
use alloc::{
    format,
    rc::Rc,
    string::{String, ToString},
    vec::Vec,
};
use serde::Deserialize;

/// Largest request body inspected, unless set otherwise: 1 MiB. A scan of it takes about 2 ms inside a V8 worker, and nothing interrupts a worker.
pub const DEFAULT_BODY_CAP_BYTES: usize = 1 << 20;
/// No setting lifts the cap above this: the JSON tape of 16 MiB of short elements is as large again.
const MAX_BODY_CAP_BYTES: usize = 16 << 20;

/// Settings as an operator writes them. Secrets are named, never written: `env:NAME` is looked up by the host.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// `ws-<uuid>`.
    pub workspace: String,
    /// The bundle channel to follow.
    #[serde(default = "default_channel")]
    pub channel: String,
    /// Keys that may sign bundles and lease answers. Not empty.
    pub trust: Vec<PublicKey>,
    /// Where the enrolment key is, `env:NAME`.
    pub enrolment_key: String,
    /// Where calls go.
    pub upstream: UpstreamSettings,
    /// Largest request body inspected, in bytes.
    #[serde(default)]
    pub body_cap_bytes: Option<usize>,
}

fn default_channel() -> String {
    "default".to_string()
}

/// Where calls go, as an operator writes it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamSettings {
    /// The one host all calls go to; absent for a forward proxy.
    #[serde(default)]
    pub host: Option<String>,
    /// Whether that is an LLM API.
    #[serde(default)]
    pub llm: bool,
    /// The provider's API keys.
    #[serde(default)]
    pub keys: KeySettings,
}

/// Where the providers' API keys are, each `env:NAME`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeySettings {
    /// Sent as `authorization: Bearer …`.
    #[serde(default)]
    pub openai: Option<String>,
    /// Sent as `x-api-key: …`.
    #[serde(default)]
    pub anthropic: Option<String>,
}

/// Text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps it.
    pub fn new(text: String) -> Secret {
        Secret(text)
    }

    /// The text itself, for the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl core::fmt::Debug for Secret {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Settings, checked, with their secrets.
#[derive(Clone, Debug)]
pub struct Config {
    /// `ws-<uuid>`.
    pub workspace: String,
    /// The bundle channel to follow.
    pub channel: String,
    /// Keys that may sign bundles and lease answers.
    pub trust: Vec<PublicKey>,
    /// Proves to the control plane that this gate belongs to the workspace.
    pub enrolment_key: Secret,
    /// Where calls go.
    pub upstream: Upstream,
    /// OpenAI's API key.
    pub openai_key: Option<Secret>,
    /// Anthropic's API key.
    pub anthropic_key: Option<Secret>,
    /// Largest request body inspected, in bytes.
    pub body_cap_bytes: usize,
}

impl Config {
    /// Reads JSON [`Settings`]; `look_up` finds a named secret. The error is a sentence for the operator.
    pub fn read(
        settings: &[u8],
        look_up: impl Fn(&str) -> Option<String>,
    ) -> Result<Config, String> {
        let settings: Settings =
            json::read(settings).map_err(|error| format!("gate settings: {error}"))?;
        Config::resolve(settings, look_up)
    }

    /// Checks `settings` and fetches their secrets.
    pub fn resolve(
        settings: Settings,
        look_up: impl Fn(&str) -> Option<String>,
    ) -> Result<Config, String> {
        let secret = |field: &str, reference: &str| -> Result<Secret, String> {
            let name = reference.strip_prefix("env:").ok_or_else(|| {
                format!("gate settings: `{field}` must be env:NAME; secrets are not written into settings")
            })?;
            look_up(name)
                .filter(|value| !value.is_empty())
                .map(Secret)
                .ok_or_else(|| {
                    format!("gate settings: `{field}` names the variable {name}, which is not set")
                })
        };
        if settings.trust.is_empty() {
            return Err(
                "gate settings: `trust` is empty; without a key no bundle can be verified"
                    .to_string(),
            );
        }
        if !is_workspace_id(&settings.workspace) {
            return Err("gate settings: `workspace` must be ws-<uuid>".to_string());
        }
        let host = match &settings.upstream.host {
            Some(host) => Some(normal_host(host).ok_or_else(|| {
                format!("gate settings: `upstream.host` is not a host name: `{host}`")
            })?),
            None => None,
        };
        let body_cap_bytes = settings.body_cap_bytes.unwrap_or(DEFAULT_BODY_CAP_BYTES);
        if body_cap_bytes == 0 || body_cap_bytes > MAX_BODY_CAP_BYTES {
            return Err(format!(
                "gate settings: `body_cap_bytes` must be between 1 and {MAX_BODY_CAP_BYTES}"
            ));
        }
        let key = |field: &str, reference: &Option<String>| {
            reference
                .as_deref()
                .map(|reference| secret(field, reference))
                .transpose()
        };
        let keys = &settings.upstream.keys;
        Ok(Config {
            enrolment_key: secret("enrolment_key", &settings.enrolment_key)?,
            openai_key: key("upstream.keys.openai", &keys.openai)?,
            anthropic_key: key("upstream.keys.anthropic", &keys.anthropic)?,
            upstream: Upstream {
                host,
                llm: settings.upstream.llm,
            },
            workspace: settings.workspace,
            channel: settings.channel,
            trust: settings.trust,
            body_cap_bytes,
        })
    }

    /// The header that carries the provider's key on calls to it.
    pub(crate) fn credential(&self, provider: Provider) -> Option<(&'static str, String)> {
        match provider {
            Provider::OpenAiChat => self
                .openai_key
                .as_ref()
                .map(|key| ("authorization", format!("Bearer {}", key.expose()))),
            Provider::AnthropicMessages => self
                .anthropic_key
                .as_ref()
                .map(|key| ("x-api-key", key.expose().to_string())),
        }
    }
}

/// Whether `text` is `ws-` and a hyphenated lower-case UUID.
pub fn is_workspace_id(text: &str) -> bool {
    text.strip_prefix("ws-").is_some_and(|uuid| {
        uuid.len() == 36
            && uuid.bytes().enumerate().all(|(at, byte)| match at {
                8 | 13 | 18 | 23 => byte == b'-',
                _ => byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte),
            })
    })
}

/// A gate at work. Starts closed.
#[derive(Debug)]
pub struct Gate {
    /// Its settings.
    pub config: Config,
    bundle: Bundle,
    tokens: TokenCache,
    pub(crate) enforced: Search,
    pub(crate) shadow: Search,
    pub(crate) bodies_matter: bool,
    /// Some document wants models to be told what tool output is.
    pub(crate) instructs: bool,
    /// Some document wants content on record.
    pub(crate) records: bool,
}

/// The patterns of some documents and what searches for them; a pattern's number is its place in the list.
#[derive(Debug, Default)]
pub(crate) struct Search {
    pub(crate) patterns: Vec<String>,
    scanner: Option<Scanner>,
    /// Some document has patterns that are looked for in answers.
    watches: bool,
    /// What is looked for in the answers to calls under the documents of these names; the newest last.
    watched: Vec<(Vec<String>, Rc<Watch>)>,
}

/// How many sets of documents with patterns a gate keeps an automaton for; one takes up to 1 MiB. A set is as a rule a workspace's and a team's
/// documents together, and one that is not kept is made again when it is met again.
const MAX_WATCHED: usize = 16;

impl Search {
    fn of(documents: &Documents, payload: &Payload) -> Result<Search, Unreadable> {
        // Also those that are for answers alone: what cannot be read is noticed here.
        let patterns = scan::distinct(documents.iter().flat_map(Document::searched));
        let automaton = |pattern: &&str| Some(&payload.compiled(pattern)?.forward);
        let automata: Option<Vec<&Automaton>> = patterns.iter().map(automaton).collect();
        let scanner = Scanner::new(&automata.ok_or(Unreadable)?)?;
        Ok(Search {
            watches: documents.iter().any(Document::watches),
            watched: Vec::new(),
            scanner: (!patterns.is_empty()).then_some(scanner),
            patterns: patterns.into_iter().map(String::from).collect(),
        })
    }

    fn search(&mut self, text: &[u8], hits: &mut Hits) {
        if let Some(scanner) = &mut self.scanner {
            scanner.search(text, hits);
        }
    }

    /// What is looked for in the answer to a call with these facts.
    fn watch(
        &mut self,
        (payload, documents): (&Payload, &Documents),
        caller: &Caller,
        facts: &Facts,
    ) -> Result<Option<Rc<Watch>>, Unreadable> {
        if !self.watches {
            return Ok(None);
        }
        let met = decide::watching(documents, caller, facts);
        if met.is_empty() {
            return Ok(None);
        }
        let is_it = |(names, _): &&(Vec<String>, Rc<Watch>)| {
            names.iter().eq(met.iter().map(|document| &document.name))
        };
        if let Some((_, watch)) = self.watched.iter().find(is_it) {
            return Ok(Some(Rc::clone(watch)));
        }
        let watch = Rc::new(Watch::of(&met, payload)?);
        if self.watched.len() == MAX_WATCHED {
            self.watched.remove(0);
        }
        let names = met.iter().map(|document| document.name.clone());
        self.watched.push((names.collect(), Rc::clone(&watch)));
        Ok(Some(watch))
    }
}

/// What is looked for in an answer: to stop it or take it out, and only to put it on record.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watches {
    pub(crate) enforced: Option<Rc<Watch>>,
    pub(crate) shadow: Option<Rc<Watch>>,
}

/// What searches for a bundle's patterns. Every automaton in use is read here, also those that a call has need of later.
fn searches(payload: &Payload) -> Result<(Search, Search), Unreadable> {
    let redactions = payload
        .documents
        .iter()
        .flat_map(|document| &document.data.redactions);
    let redacted = redactions.flat_map(|redaction| &redaction.patterns);
    for pattern in scan::distinct(redacted.map(String::as_str)) {
        masker(payload, pattern)?;
    }
    let search = |documents| Search::of(documents, payload);
    Ok((search(&payload.documents)?, search(&payload.shadow)?))
}

fn masker(payload: &Payload, pattern: &str) -> Result<Masker, Unreadable> {
    Masker::new(payload.compiled(pattern).ok_or(Unreadable)?)
}

/// What was found in a call. Each of the two is searched for alone: patterns in shadow must not make a search give up that would not have.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    pub(crate) enforced: Hits,
    pub(crate) shadow: Hits,
}

impl Found {
    pub(crate) fn is_empty(&self) -> bool {
        self.enforced.is_empty() && self.shadow.is_empty()
    }
}

impl Gate {
    /// A gate that denies everything until a bundle is installed.
    pub fn new(config: Config) -> Gate {
        let secret = config.enrolment_key.expose().as_bytes();
        let key = hmac(secret, &[b"tollgate token cache 1"]);
        let tokens = TokenCache::new(key.first_chunk().unwrap_or(&[0; 16]));
        Gate {
            config,
            bundle: Bundle::closed(),
            tokens,
            enforced: Search::default(),
            shadow: Search::default(),
            bodies_matter: false,
            instructs: false,
            records: false,
        }
    }

    /// Verifies `envelope` and runs it from now on; on any error the bundle that ran before still runs.
    pub fn install(&mut self, envelope: &[u8], now: Time) -> Result<(), InstallError> {
        let config = &self.config;
        let next = self.bundle.successor(
            envelope,
            &config.trust,
            &config.workspace,
            &config.channel,
            now,
        )?;
        self.run(next)
    }

    /// Runs a bundle that was compiled in this process.
    pub fn install_local(&mut self, payload: Payload) -> Result<(), InstallError> {
        self.run(Bundle::local(payload))
    }

    fn run(&mut self, bundle: Bundle) -> Result<(), InstallError> {
        let (enforced, shadow) = match bundle.payload() {
            Some(payload) => searches(payload).map_err(|_| InstallError::Pattern)?,
            None => Default::default(),
        };
        (self.enforced, self.shadow) = (enforced, shadow);
        self.bodies_matter = bundle.payload().is_some_and(facts::bodies_matter);
        let some = |says: fn(&Data) -> bool| {
            bundle.payload().is_some_and(|payload| {
                let mut documents = payload.documents.iter();
                documents.any(|document| says(&document.data))
            })
        };
        self.instructs = some(|data| data.tool_output_is_data);
        self.records = some(|data| data.recorded);
        self.bundle = bundle;
        self.tokens.clear();
        Ok(())
    }

    /// What it runs.
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// The caller that `token` proves, by the keys and revocations of the running bundle.
    pub(crate) fn verify(&mut self, token: &[u8], now: Time) -> Result<Rc<Caller>, IdentityError> {
        let payload = self.bundle.payload().ok_or(IdentityError::Untrusted)?;
        let caller = self
            .tokens
            .verify(token, &payload.token_keys, &self.config.workspace, now)?;
        let revoked = |agent| payload.revoked_agents.binary_search(agent).is_ok();
        if caller.all().any(|caller| revoked(&caller.agent)) {
            return Err(IdentityError::Revoked);
        }
        Ok(caller)
    }

    /// What takes out what a pattern matches.
    pub(crate) fn masker(&self, pattern: &str) -> Result<Masker, Unreadable> {
        let payload = self.bundle.payload().ok_or(Unreadable)?;
        masker(payload, pattern)
    }

    /// Adds the patterns found in `text` to `found`.
    pub(crate) fn search(&mut self, text: &[u8], found: &mut Found) {
        self.enforced.search(text, &mut found.enforced);
        self.shadow.search(text, &mut found.shadow);
    }

    /// Whether any pattern is found in `text`, or may be.
    pub(crate) fn matches(&mut self, text: &[u8]) -> bool {
        let mut found = Found::default();
        self.search(text, &mut found);
        !found.is_empty()
    }

    /// What is looked for in the answer to a call.
    pub(crate) fn watch(&mut self, caller: &Caller, facts: &Facts) -> Result<Watches, Unreadable> {
        let Some(payload) = self.bundle.payload() else {
            return Ok(Watches::default());
        };
        Ok(Watches {
            enforced: self
                .enforced
                .watch((payload, &payload.documents), caller, facts)?,
            shadow: self
                .shadow
                .watch((payload, &payload.shadow), caller, facts)?,
        })
    }

    /// Whether there is anything to search for.
    pub(crate) fn searches(&self) -> bool {
        !self.enforced.patterns.is_empty() || !self.shadow.patterns.is_empty()
    }

    /// What to decide by at `now`.
    pub(crate) fn payload(&self, now: Time) -> Result<&Payload, Unusable> {
        self.bundle.at(now)
    }
}
