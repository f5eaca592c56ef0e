//! Whether a site follows an order or a round: only if a key in the root signed it, for this site, unchanged, and it
//! has not expired. Pure.

use schemas::{CodecError, Order, ReleaseId, Root, Round, Signature, encode};

use crate::site_key::{self, SiteKey, is_signed};

/// How long an order or the opening of a round is valid: a site that was away for less than this finds a valid one.
const VALID_MS: u64 = 30 * 24 * 3_600_000;

/// Why a message is not followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// It has no signature.
    #[error("it is not signed")]
    Unsigned,
    /// The signing key is not in the root.
    #[error("it is signed with a key that the root does not list for this")]
    OtherKey,
    /// The content does not match the signature.
    #[error("it was changed after it was signed")]
    Changed,
    /// It has expired.
    #[error("it expired at {0} ms after the epoch")]
    Over(u64),
    /// The root itself has expired, so no signature counts.
    #[error("the fleet's root expired at {0} ms after the epoch; nothing is followed until there is a new one")]
    RootOver(u64),
    /// The root forbids the release.
    #[error("the root forbids release {0}")]
    Never(String),
    /// Its number is not newer than the known one.
    #[error("it has number {found}, but number {known} is already known")]
    Older {
        /// Number in the message.
        found: u64,
        /// Number already known.
        known: u64,
    },
}

impl TrustError {
    /// The fault name, for dead letters.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Unsigned => "order_unsigned",
            Self::OtherKey => "order_by_stranger",
            Self::Changed => "order_changed",
            Self::Over(_) => "order_expired",
            Self::RootOver(_) => "root_expired",
            Self::Never(_) => "release_never",
            Self::Older { .. } => "order_older",
        }
    }
}

/// Signs a root; each of its own keys and those of its predecessor must sign.
pub fn sign_root(root: &mut Root, key: &SiteKey) -> Result<(), CodecError> {
    let signature = site_key::hex(&key.sign(&root.signed_bytes()?));
    root.signatures.insert(key.public(), signature);
    Ok(())
}

/// Checks that a root may replace its predecessor: it is newer, has not expired, and is signed by a key of each.
pub fn check_root(next: &Root, before: &Root, now_ms: u64) -> Result<(), TrustError> {
    if next.number <= before.number {
        return Err(TrustError::Older { found: next.number, known: before.number });
    }
    if next.expires_at_ms <= now_ms {
        return Err(TrustError::RootOver(next.expires_at_ms));
    }
    for keys in [&before.keys, &next.keys] {
        check_signed_by(next, keys)?;
    }
    Ok(())
}

/// Checks the signatures of a root that a person gave to the site.
pub fn check_first_root(root: &Root) -> Result<(), TrustError> {
    check_signed_by(root, &root.keys)
}

fn check_signed_by(root: &Root, keys: &[String]) -> Result<(), TrustError> {
    let signed = root.signed_bytes().map_err(|_| TrustError::Changed)?;
    let by = keys.iter().filter_map(|key| Some((key, root.signatures.get(key)?)));
    let mut has_signature = false;
    for (key, signature) in by {
        has_signature = true;
        if site_key::bytes_of(signature).is_some_and(|signature| is_signed(key, &signed, &signature)) {
            return Ok(());
        }
    }
    Err(if has_signature { TrustError::Changed } else { TrustError::OtherKey })
}

/// A signed message that tells a site what to do.
pub trait Instruction: schemas::Message + Clone {
    /// Its signature.
    fn signature(&self) -> Option<&Signature>;
    /// The same message with another signature.
    fn with(self, signature: Option<Signature>) -> Self;
    /// The keys of the root that may sign it.
    fn keys(root: &Root) -> &[String];
    /// The release that the site would run; `None` for other instructions.
    fn release(&self) -> Option<&ReleaseId>;
}

impl Instruction for Order {
    fn signature(&self) -> Option<&Signature> {
        self.signature.as_ref()
    }

    fn with(self, signature: Option<Signature>) -> Self {
        Self { signature, ..self }
    }

    fn keys(root: &Root) -> &[String] {
        &root.releaser
    }

    fn release(&self) -> Option<&ReleaseId> {
        Some(&self.release.release)
    }
}

impl Instruction for Round {
    fn signature(&self) -> Option<&Signature> {
        self.signature.as_ref()
    }

    fn with(self, signature: Option<Signature>) -> Self {
        Self { signature, ..self }
    }

    fn keys(root: &Root) -> &[String] {
        &root.aggregator
    }

    fn release(&self) -> Option<&ReleaseId> {
        None
    }
}

/// Signs an instruction, valid for a month from now.
pub fn sign<T: Instruction>(instruction: T, key: &SiteKey, now_ms: u64) -> Result<T, CodecError> {
    let unsigned = Signature { key: key.public(), expires_at_ms: now_ms.saturating_add(VALID_MS), bytes: Vec::new() };
    let instruction = instruction.with(Some(unsigned.clone()));
    let bytes = key.sign(&encode(&instruction)?);
    Ok(instruction.with(Some(Signature { bytes, ..unsigned })))
}

/// Checks whether a site may follow an instruction.
pub fn check<T: Instruction>(instruction: &T, root: &Root, now_ms: u64) -> Result<(), TrustError> {
    let signature = instruction.signature().ok_or(TrustError::Unsigned)?;
    if root.expires_at_ms <= now_ms {
        return Err(TrustError::RootOver(root.expires_at_ms));
    }
    if !T::keys(root).contains(&signature.key) {
        return Err(TrustError::OtherKey);
    }
    let unsigned = Signature { bytes: Vec::new(), ..signature.clone() };
    let signed = encode(&instruction.clone().with(Some(unsigned))).map_err(|_| TrustError::Changed)?;
    if !is_signed(&signature.key, &signed, &signature.bytes) {
        return Err(TrustError::Changed);
    }
    if signature.expires_at_ms <= now_ms {
        return Err(TrustError::Over(signature.expires_at_ms));
    }
    match instruction.release().filter(|release| root.never.contains(release)) {
        Some(release) => Err(TrustError::Never(release.short().to_owned())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use schemas::{ModelName, RoundEvent};

    use super::*;

    fn key() -> SiteKey {
        SiteKey::of_secret(&SiteKey::make_secret().unwrap()).unwrap()
    }

    fn root(number: u64, by: &SiteKey, aggregator: &SiteKey) -> Root {
        let mut root = Root {
            number,
            expires_at_ms: 1_000_000,
            keys: vec![by.public()],
            releaser: Vec::new(),
            aggregator: vec![aggregator.public()],
            never: Vec::new(),
            signatures: Default::default(),
        };
        sign_root(&mut root, by).unwrap();
        root
    }

    fn round(number: u64) -> Round {
        let event = RoundEvent::Closed { why: "x".into() };
        Round { model: ModelName::from_name("m"), number, event, said_at_ms: 5, signature: None }
    }

    #[test]
    fn unsigned_changed_expired_and_foreign_instructions_are_refused() {
        let (offline, online, stranger) = (key(), key(), key());
        let root = root(1, &offline, &online);
        assert_eq!(check(&round(1), &root, 10), Err(TrustError::Unsigned));
        let signed = sign(round(1), &online, 10).unwrap();
        assert_eq!(check(&signed, &root, 10), Ok(()));
        assert_eq!(check(&Round { number: 2, ..signed.clone() }, &root, 10), Err(TrustError::Changed));
        assert_eq!(check(&sign(round(1), &stranger, 10).unwrap(), &root, 10), Err(TrustError::OtherKey));
        let mut lasting = signed.clone();
        lasting.signature.as_mut().unwrap().expires_at_ms += 1;
        assert_eq!(check(&lasting, &root, 10), Err(TrustError::Changed), "the expiry is signed too");
        let far = Root { expires_at_ms: u64::MAX, ..root.clone() };
        let late = signed.signature.as_ref().unwrap().expires_at_ms;
        assert_eq!(check(&signed, &far, late), Err(TrustError::Over(late)));
        assert_eq!(check(&signed, &root, 1_000_000), Err(TrustError::RootOver(1_000_000)));
    }

    #[test]
    fn a_new_root_needs_signatures_of_the_old_and_the_new_key() {
        let (old, new, online) = (key(), key(), key());
        let first = root(1, &old, &online);
        assert_eq!(check_first_root(&first), Ok(()));
        assert_eq!(check_root(&root(2, &old, &online), &first, 10), Ok(()));
        assert_eq!(check_root(&root(1, &old, &online), &first, 10), Err(TrustError::Older { found: 1, known: 1 }));
        let mut changed = root(2, &new, &online);
        assert_eq!(check_root(&changed, &first, 10), Err(TrustError::OtherKey), "the old key did not sign it");
        sign_root(&mut changed, &old).unwrap();
        assert_eq!(check_root(&changed, &first, 10), Ok(()));
        changed.never.push(ReleaseId::from_sha256([1; 32]));
        assert_eq!(check_root(&changed, &first, 10), Err(TrustError::Changed));
        assert_eq!(check_root(&root(2, &old, &online), &first, 1_000_000), Err(TrustError::RootOver(1_000_000)));
    }
}
