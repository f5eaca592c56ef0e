//! Whether a site obeys: an order or a round counts only if a key of the root signed it, for this site, as it stands, and in
//! time. Pure.

use schemas::{CodecError, Order, ReleaseId, Root, Round, Signature, encode};

use crate::site_key::{self, SiteKey, is_signed};

/// How long an order is obeyed, and the opening of a round: a site that was away for less finds one that holds.
const HOLDS_MS: u64 = 30 * 24 * 3_600_000;

/// Why a message is not obeyed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// Nobody signed it.
    #[error("it is not signed")]
    Unsigned,
    /// Somebody did whom the root does not name.
    #[error("it is signed with a key that the root does not name for this")]
    OtherKey,
    /// It says something else than what was signed.
    #[error("it was changed after it was signed")]
    Changed,
    /// It was to be obeyed before now.
    #[error("it was to be obeyed until {0} ms after the epoch, and that is over")]
    Over(u64),
    /// The root itself is too old to say who may.
    #[error("the fleet's root ended {0} ms after the epoch: until there is a new one nothing is obeyed")]
    RootOver(u64),
    /// It must not run.
    #[error("the root says that release {0} never runs")]
    Never(String),
    /// Another one, no newer.
    #[error("it has number {found}, and number {known} is known")]
    Older {
        /// Its number.
        found: u64,
        /// The one that holds.
        known: u64,
    },
}

impl TrustError {
    /// Its name, for dead letters.
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

/// Signs a root; each of its own keys and those of the one before must.
pub fn sign_root(root: &mut Root, key: &SiteKey) -> Result<(), CodecError> {
    let signature = site_key::hex(&key.sign(&root.signed_bytes()?));
    root.signatures.insert(key.public(), signature);
    Ok(())
}

/// Whether a root takes the place of the one before: it is newer, good, and signed by a key of both.
pub fn check_root(next: &Root, before: &Root, now_ms: u64) -> Result<(), TrustError> {
    if next.number <= before.number {
        return Err(TrustError::Older { found: next.number, known: before.number });
    }
    if next.expires_at_ms <= now_ms {
        return Err(TrustError::RootOver(next.expires_at_ms));
    }
    for keys in [&before.keys, &next.keys] {
        is_signed_by(next, keys)?;
    }
    Ok(())
}

/// Whether a root that a site was given by hand is whole.
pub fn check_first_root(root: &Root) -> Result<(), TrustError> {
    is_signed_by(root, &root.keys)
}

fn is_signed_by(root: &Root, keys: &[String]) -> Result<(), TrustError> {
    let signed = root.signed_bytes().map_err(|_| TrustError::Changed)?;
    let by = keys.iter().filter_map(|key| Some((key, root.signatures.get(key)?)));
    let mut some = false;
    for (key, signature) in by {
        some = true;
        if site_key::bytes_of(signature).is_some_and(|signature| is_signed(key, &signed, &signature)) {
            return Ok(());
        }
    }
    Err(if some { TrustError::Changed } else { TrustError::OtherKey })
}

/// Something that a site is told to do.
pub trait Instruction: schemas::Message + Clone {
    /// Its signature.
    fn signature(&self) -> Option<&Signature>;
    /// The same with another one.
    fn with(self, signature: Option<Signature>) -> Self;
    /// The keys that may sign it.
    fn keys(root: &Root) -> &[String];
    /// The release it would run.
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

/// Signs what a site is told, until a month from now.
pub fn sign<T: Instruction>(told: T, key: &SiteKey, now_ms: u64) -> Result<T, CodecError> {
    let unsigned = Signature { key: key.public(), expires_at_ms: now_ms.saturating_add(HOLDS_MS), bytes: Vec::new() };
    let told = told.with(Some(unsigned.clone()));
    let bytes = key.sign(&encode(&told)?);
    Ok(told.with(Some(Signature { bytes, ..unsigned })))
}

/// Whether a site obeys.
pub fn check<T: Instruction>(told: &T, root: &Root, now_ms: u64) -> Result<(), TrustError> {
    let signature = told.signature().ok_or(TrustError::Unsigned)?;
    if root.expires_at_ms <= now_ms {
        return Err(TrustError::RootOver(root.expires_at_ms));
    }
    if !T::keys(root).contains(&signature.key) {
        return Err(TrustError::OtherKey);
    }
    let unsigned = Signature { bytes: Vec::new(), ..signature.clone() };
    let signed = encode(&told.clone().with(Some(unsigned))).map_err(|_| TrustError::Changed)?;
    if !is_signed(&signature.key, &signed, &signature.bytes) {
        return Err(TrustError::Changed);
    }
    if signature.expires_at_ms <= now_ms {
        return Err(TrustError::Over(signature.expires_at_ms));
    }
    match told.release().filter(|release| root.never.contains(release)) {
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
    fn what_is_unsigned_changed_expired_or_by_a_stranger_is_not_obeyed() {
        let (offline, online, stranger) = (key(), key(), key());
        let root = root(1, &offline, &online);
        assert_eq!(check(&round(1), &root, 10), Err(TrustError::Unsigned));
        let signed = sign(round(1), &online, 10).unwrap();
        assert_eq!(check(&signed, &root, 10), Ok(()));
        assert_eq!(check(&Round { number: 2, ..signed.clone() }, &root, 10), Err(TrustError::Changed));
        assert_eq!(check(&sign(round(1), &stranger, 10).unwrap(), &root, 10), Err(TrustError::OtherKey));
        let mut lasting = signed.clone();
        lasting.signature.as_mut().unwrap().expires_at_ms += 1;
        assert_eq!(check(&lasting, &root, 10), Err(TrustError::Changed), "the end date is signed, too");
        let far = Root { expires_at_ms: u64::MAX, ..root.clone() };
        let late = signed.signature.as_ref().unwrap().expires_at_ms;
        assert_eq!(check(&signed, &far, late), Err(TrustError::Over(late)));
        assert_eq!(check(&signed, &root, 1_000_000), Err(TrustError::RootOver(1_000_000)));
    }

    #[test]
    fn a_root_is_followed_by_a_newer_one_that_the_old_and_the_new_key_signed() {
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
