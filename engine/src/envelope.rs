//! Signed bytes: the DSSE envelope (Dead Simple Signing Envelope, secure-systems-lab/dsse, protocol v1.0.2) with Ed25519.
//!
//! Bytes first: [`open`] verifies and only then hands out the payload, and nobody re-serialises to check.
//! The key decides the algorithm; an envelope has no algorithm field, and one that brings unknown fields is refused.
//! Signing is deliberately not here: no gate can make what it accepts.

use crate::{bytes, json};
use alloc::{format, string::String, vec::Vec};
use core::fmt;
use ed25519_dalek::{Signature, VerifyingKey};
use serde::{Deserialize, Serialize};

/// Payload type of a policy bundle.
pub const BUNDLE_TYPE: &str = "application/vnd.tollgate.bundle+json";
/// Payload type of an answer to a lease request.
pub const LEASES_TYPE: &str = "application/vnd.tollgate.leases+json";
/// Payload type of the checkpoint that closes an audit export.
pub const CHECKPOINT_TYPE: &str = "application/vnd.tollgate.checkpoint+json";

/// Signatures looked at in one envelope; more are refused. Two are enough for a key rotation, eight is generous.
const MAX_SIGNATURES: usize = 8;

/// A verification key and the name it goes by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublicKey {
    /// Names the key in envelopes (`keyid`) and tokens (`kid`).
    pub key_id: String,
    /// 32 bytes, Ed25519 (RFC 8032 §5.1.5).
    #[serde(with = "bytes::base64")]
    pub public_key: Vec<u8>,
}

impl PublicKey {
    /// Whether `signature` is this key's over `message`, by the strict rules (no small-order keys, no malleable signatures).
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let Ok(key_bytes) = <&[u8; 32]>::try_from(self.public_key.as_slice()) else {
            return false;
        };
        let (Ok(key), Ok(signature)) = (
            VerifyingKey::from_bytes(key_bytes),
            Signature::from_slice(signature),
        ) else {
            return false;
        };
        key.verify_strict(message, &signature).is_ok()
    }
}

/// The envelope as it travels.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Envelope {
    /// The signed bytes, base64.
    #[serde(with = "bytes::base64")]
    pub payload: Vec<u8>,
    /// What the payload is; signed with it.
    #[serde(rename = "payloadType")]
    pub payload_type: String,
    /// Signatures over [`pre_authentication_encoding`].
    pub signatures: Vec<EnvelopeSignature>,
}

/// One signature of an [`Envelope`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnvelopeSignature {
    /// [`PublicKey::key_id`] of the signer.
    pub keyid: String,
    /// 64 bytes, Ed25519.
    #[serde(with = "bytes::base64")]
    pub sig: Vec<u8>,
}

/// Why an envelope was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// Not an envelope at all: not JSON, a field missing, a field too many.
    Malformed,
    /// An envelope of something else.
    WrongType,
    /// No signature, or more than anyone needs.
    Unsigned,
    /// Signed, but by none of the trusted keys, or not over these bytes.
    Untrusted,
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            OpenError::Malformed => "not a signed envelope",
            OpenError::WrongType => "an envelope of another payload type",
            OpenError::Unsigned => "the envelope carries no usable signature",
            OpenError::Untrusted => "no signature by a trusted key matches the payload",
        })
    }
}

/// What is signed: type and payload with their lengths, so that neither can bleed into the other (DSSE "PAE").
pub fn pre_authentication_encoding(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut out = format!(
        "DSSEv1 {} {payload_type} {} ",
        payload_type.len(),
        payload.len()
    )
    .into_bytes();
    out.extend_from_slice(payload);
    out
}

/// Verifies `envelope` against `trusted` and returns its payload.
pub fn open(
    envelope: &[u8],
    payload_type: &str,
    trusted: &[PublicKey],
) -> Result<Vec<u8>, OpenError> {
    let envelope: Envelope = json::read(envelope).map_err(|_| OpenError::Malformed)?;
    if envelope.payload_type != payload_type {
        return Err(OpenError::WrongType);
    }
    if envelope.signatures.is_empty() || envelope.signatures.len() > MAX_SIGNATURES {
        return Err(OpenError::Unsigned);
    }
    let signed = pre_authentication_encoding(payload_type, &envelope.payload);
    let verified = envelope.signatures.iter().any(|signature| {
        trusted
            .iter()
            .any(|key| key.key_id == signature.keyid && key.verifies(&signed, &signature.sig))
    });
    if verified {
        Ok(envelope.payload)
    } else {
        Err(OpenError::Untrusted)
    }
}
