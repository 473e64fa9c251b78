//! The signing key: bundles, lease answers, checkpoints and agent tokens.
//!
//! One Ed25519 key per installation. Its uses cannot be confused: an envelope is signed with its payload type in front, a token is
//! base64url text. Everything signed names its workspace, and whoever verifies compares that.

use crate::files::DataDir;
use ed25519_dalek::{Signer as _, SigningKey};
use serde::Serialize;
use std::io;
use tollgate_engine::{
    bytes::{self, Digest},
    envelope::{Envelope, EnvelopeSignature, PublicKey, pre_authentication_encoding},
    identity::{Claims, TOKEN_TYPE, TokenHeader, signing_input},
};

/// Digits of a key's digest that name it. 64 bits: no two keys of an installation meet by chance.
const KEY_ID_DIGITS: usize = 16;

/// A verification key under the name that this control plane gives it.
pub fn public_key(key: [u8; 32]) -> PublicKey {
    PublicKey {
        key_id: Digest::of(&key)
            .to_string()
            .chars()
            .take(KEY_ID_DIGITS)
            .collect(),
        public_key: key.to_vec(),
    }
}

pub(crate) struct Signer {
    key: SigningKey,
    public: PublicKey,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signer({})", self.public.key_id)
    }
}

impl Signer {
    /// The data directory's key.
    pub(crate) fn open(data: &DataDir) -> io::Result<Signer> {
        let key = SigningKey::from_bytes(&data.secret("signing.key")?);
        let public = public_key(key.verifying_key().to_bytes());
        Ok(Signer { key, public })
    }

    /// What gates and verifiers trust.
    pub(crate) fn public(&self) -> &PublicKey {
        &self.public
    }

    /// `payload` in a signed envelope, as bytes.
    pub(crate) fn envelope(
        &self,
        payload_type: &str,
        payload: &[u8],
    ) -> serde_json::Result<Vec<u8>> {
        let signature = self
            .key
            .sign(&pre_authentication_encoding(payload_type, payload));
        serde_json::to_vec(&Envelope {
            payload: payload.to_vec(),
            payload_type: payload_type.to_owned(),
            signatures: vec![EnvelopeSignature {
                keyid: self.public.key_id.clone(),
                sig: signature.to_bytes().to_vec(),
            }],
        })
    }

    /// `value` as JSON in a signed envelope.
    pub(crate) fn seal<T: Serialize>(
        &self,
        payload_type: &str,
        value: &T,
    ) -> serde_json::Result<Vec<u8>> {
        self.envelope(payload_type, &serde_json::to_vec(value)?)
    }

    /// An agent token with these claims; `None` when they cannot be written down.
    pub(crate) fn token(&self, claims: &Claims) -> Option<String> {
        let header = TokenHeader {
            alg: "EdDSA".into(),
            typ: TOKEN_TYPE.into(),
            kid: self.public.key_id.clone(),
        };
        let input = signing_input(&header, claims)?;
        let signature = self.key.sign(input.as_bytes()).to_bytes();
        Some(format!("{input}.{}", bytes::to_base64url(&signature)))
    }
}
