//! Signatures of models of others, and the keys they are checked with.

use bend::{bend_all, corpus, turns};
use harness::program::fixture;
use model_signature::{EcPrivateKey, EcPublicKey, verify_folder};

#[test]
fn signatures_and_keys_that_were_bent_are_refused_or_say_the_same() {
    bend::limit_memory();
    let (folder, at) = (fixture("model_signature/model"), tempfile::tempdir().unwrap());
    let signature = at.path().join("model.sig");
    let keys = [EcPublicKey::read(&fixture("model_signature/keys/public.pem")).unwrap()];
    let signed = |bytes: &[u8]| {
        std::fs::write(&signature, bytes).unwrap();
        let verified = verify_folder(&folder, &signature, &keys).ok()?;
        Some(verified.files().map(str::to_owned).collect::<Vec<_>>())
    };
    let whole = signed(&std::fs::read(fixture("model_signature/model.sig")).unwrap());
    assert!(whole.is_some());
    let signatures = corpus("fixtures/model_signature", &["model.sig", "shards.sig"], 1 << 20);
    bend_all("signatures of models", &signatures, turns() / 4, |bytes| {
        assert!([&None, &whole].contains(&&signed(bytes)));
        1
    });
    bend_all("keys of signers", &corpus("fixtures/model_signature/keys", &[".pem"], 1 << 16), turns(), |bytes| {
        let text = String::from_utf8_lossy(bytes);
        let _read = (EcPublicKey::from_pem(&text).is_ok(), EcPrivateKey::from_pem(&text).is_ok());
        2
    });
}
