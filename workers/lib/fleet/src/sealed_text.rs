//! Seals a site's file with a code that is sent separately: the file alone is useless to a finder.
//!
//! AES-256-GCM under a key of PBKDF2 with HMAC-SHA256 (RFC 8018); the code has 80 random bits.

use std::num::NonZeroU32;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::pbkdf2::{PBKDF2_HMAC_SHA256, derive};
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};

const ITERATIONS: NonZeroU32 = NonZeroU32::new(200_000).unwrap();
const SALT_BYTES: usize = 16;
/// Letters and digits that cannot be confused with each other (Crockford's base 32).
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const CODE_LETTERS: usize = 16;

/// A text sealed with a code.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SealedText {
    pub version: u16,
    salt: String,
    /// The encrypted text, followed by the tag.
    sealed: String,
}

/// A new code, in groups that can be read aloud.
///
/// # Errors
/// The system provides no random numbers.
#[expect(clippy::indexing_slicing, reason = "the alphabet has 32 letters")]
pub fn make_code() -> Result<String, ring::error::Unspecified> {
    let mut random = [0; CODE_LETTERS];
    SystemRandom::new().fill(&mut random)?;
    let letters: Vec<char> = random.iter().map(|byte| char::from(ALPHABET[usize::from(byte % 32)])).collect();
    Ok(letters.chunks(4).map(|group| group.iter().collect::<String>()).collect::<Vec<_>>().join("-"))
}

impl SealedText {
    /// Seals a text with a code.
    pub(crate) fn encrypt(version: u16, text: &str, code: &str) -> Result<Self, ring::error::Unspecified> {
        let mut salt = [0; SALT_BYTES];
        SystemRandom::new().fill(&mut salt)?;
        let mut bytes = text.as_bytes().to_vec();
        key(code, &salt)?.seal_in_place_append_tag(nonce(), Aad::empty(), &mut bytes)?;
        Ok(Self { version, salt: STANDARD.encode(salt), sealed: STANDARD.encode(bytes) })
    }

    /// The sealed text; `None` with a wrong code, or if it was changed.
    pub(crate) fn decrypt(&self, code: &str) -> Option<String> {
        let (salt, mut bytes) = (STANDARD.decode(&self.salt).ok()?, STANDARD.decode(&self.sealed).ok()?);
        let opened = key(code, &salt).ok()?.open_in_place(nonce(), Aad::empty(), &mut bytes).ok()?;
        String::from_utf8(opened.to_vec()).ok()
    }
}

/// A constant nonce is safe: each key seals one text, because its salt is always new.
fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; NONCE_LEN])
}

/// The key derived from a code, tolerant of how a person types it.
fn key(code: &str, salt: &[u8]) -> Result<LessSafeKey, ring::error::Unspecified> {
    let typed = code.chars().filter(char::is_ascii_alphanumeric).map(|c| match c.to_ascii_uppercase() {
        'O' => '0',
        'I' | 'L' => '1',
        c => c,
    });
    let typed: String = typed.collect();
    let mut key = [0; 32];
    derive(PBKDF2_HMAC_SHA256, ITERATIONS, salt, typed.as_bytes(), &mut key);
    UnboundKey::new(&AES_256_GCM, &key).map(LessSafeKey::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_text_opens_with_its_code_however_it_is_typed() {
        let code = make_code().unwrap();
        assert_eq!(code.len(), CODE_LETTERS + 3);
        let sealed = SealedText::encrypt(1, "secret words", &code).unwrap();
        assert!(!serde_json::to_string(&sealed).unwrap().contains("secret"));
        for typed in
            [code.clone(), code.to_lowercase(), code.replace('-', " "), code.replace('1', "l").replace('0', "o")]
        {
            assert_eq!(sealed.decrypt(&typed).as_deref(), Some("secret words"), "{typed}");
        }
        assert_eq!(sealed.decrypt(&make_code().unwrap()), None);
        assert_eq!(sealed.decrypt(""), None);
        let changed = SealedText { sealed: sealed.sealed.replacen(|c: char| c.is_ascii_lowercase(), "Z", 1), ..sealed };
        assert_eq!(changed.decrypt(&code), None);
    }
}
