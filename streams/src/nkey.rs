//! NKeys: the Ed25519 key pairs that users of nats-server log in with, and the text that it writes them in.
//!
//! A key is written in base 32 without padding: what kind of key it is, its 32 bytes, and a CRC-16 of all that
//! ([the format](https://docs.nats.io/running-a-nats-service/configuration/securing_nats/auth_intro/nkey_auth)).
//! The arithmetic is ring's. Only keys of users are known here: accounts and operators have none in Tributary.

use std::fmt;

use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{Ed25519KeyPair, KeyPair};

const KEY_BYTES: usize = 32;
/// `U`, first letter of a user's public key.
const USER: u8 = 20 << 3;
/// `S`, first letter of every seed; which kind of key it is of comes after it.
const SEED: u8 = 18 << 3;
const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

/// Why there is no key pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NKeyError {
    /// Text that is no seed of a user.
    #[error(
        "holds no seed of a user's NKey: 58 capital letters and digits that begin with SU, the last few of them a checksum"
    )]
    NoSeed,
    /// The system gave no random numbers.
    #[error("the system gave no random numbers for a key")]
    NoRandomness,
}

/// The key pair of a user.
pub struct UserKey {
    seed: [u8; KEY_BYTES],
    pair: Ed25519KeyPair,
}

/// Its secret part stays out of logs.
impl fmt::Debug for UserKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("UserKey").field(&self.public_key()).finish()
    }
}

impl UserKey {
    /// Makes a new one.
    ///
    /// # Errors
    /// A system without random numbers.
    pub fn generate() -> Result<Self, NKeyError> {
        let mut seed = [0; KEY_BYTES];
        SystemRandom::new().fill(&mut seed).map_err(|_unspecified| NKeyError::NoRandomness)?;
        Self::new(seed)
    }

    /// Reads a seed, as [`UserKey::seed`] and the tool `nk` write it.
    ///
    /// # Errors
    /// Text that is no seed, the seed of another kind of key among it.
    pub fn from_seed(text: &str) -> Result<Self, NKeyError> {
        let bytes = decode(text).ok_or(NKeyError::NoSeed)?;
        match *bytes {
            [first, second, ref seed @ ..] if [first, second] == seed_prefix() => {
                Self::new(seed.try_into().map_err(|_wrong_length| NKeyError::NoSeed)?)
            }
            _ => Err(NKeyError::NoSeed),
        }
    }

    fn new(seed: [u8; KEY_BYTES]) -> Result<Self, NKeyError> {
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|_rejected| NKeyError::NoSeed)?;
        Ok(Self { seed, pair })
    }

    /// The secret that it can be made of again.
    pub fn seed(&self) -> String {
        encode(&seed_prefix(), &self.seed)
    }

    /// What a server knows its user by.
    pub fn public_key(&self) -> String {
        encode(&[USER], self.pair.public_key().as_ref())
    }

    /// Signs what a server asks to be signed.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.pair.sign(message).as_ref().to_vec()
    }
}

/// The kind of the key begins three bits after the kind of the text, so it lies in two bytes.
fn seed_prefix() -> [u8; 2] {
    [SEED | USER >> 5, USER << 3]
}

#[expect(clippy::indexing_slicing, reason = "five bits are below the length of the alphabet")]
fn encode(prefix: &[u8], key: &[u8]) -> String {
    let mut bytes = [prefix, key].concat();
    bytes.extend(crc16(&bytes).to_le_bytes());
    let letter = |value: u16| char::from(ALPHABET[usize::from(value & 31)]);
    let mut text = String::with_capacity(bytes.len().div_ceil(5) * 8);
    let (mut held, mut bits) = (0_u16, 0);
    for byte in bytes {
        held = held << 8 | u16::from(byte);
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            text.push(letter(held >> bits));
        }
    }
    if bits > 0 {
        text.push(letter(held << (5 - bits)));
    }
    text
}

/// The bytes before the checksum, if the text is what [`encode`] makes of them.
fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() * 5 / 8);
    let (mut held, mut bits) = (0_u16, 0);
    for letter in text.bytes() {
        let value = ALPHABET.iter().position(|known| *known == letter)?;
        held = held << 5 | u16::try_from(value).ok()?;
        bits += 5;
        if bits >= 8 {
            bits -= 8;
            bytes.push((held >> bits & 0xff) as u8);
        }
    }
    let [rest @ .., low, high] = bytes.as_slice() else { return None };
    // Bits left over must be none, so that one key has one text.
    let is_whole = bits < 5 && held & ((1 << bits) - 1) == 0;
    (is_whole && crc16(rest) == u16::from_le_bytes([*low, *high])).then(|| rest.to_vec())
}

/// CRC-16/XMODEM.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte) << 8, |crc, _| crc << 1 ^ if crc & 0x8000 == 0 { 0 } else { 0x1021 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made with the Rust crate nkeys 0.4.5: seed, public key, signature of `MESSAGE` in hexadecimal.
    const KNOWN: [[&str; 3]; 3] = [
        [
            "SUALAM4JE6WUB53N4UIFJTJSLWL2GSOMZ4RZLCEE3LUTMC752TDCQQDLJI",
            "UB3RYOBFRJODH6B5H5LINCIV66CR2GCLPBFPFR2JAJ4LYRQW5QXNIASK",
            "745825926426c84d3e594623e76a0de5cc82abad8c30d1af5e9bc762d22e6437ede52a77b7919218133e946ccbb51df26a13f8ecac9701762556aad03f89f200",
        ],
        [
            "SUAI3MQKHDBSOD5DHGDT2UPUWVTOUNH3GEP6FD7XUDWVHTSP7NGJ7BYXVQ",
            "UCPOLRFJI2X6FLFIKFCJEOI3GATBJWPB3XPTSAS3EL2EHSEUUFXK2PRO",
            "1bd4910daff1460935f7308e041ddce2cc7dbeae62525176363aec434efdd37d9e90c26e841876d656831ba01fcd9bc4482f93b700113c3eec279f61785e7f01",
        ],
        [
            "SUACDIKX2I2WYG2RLWXXHFVGCDTEXYDZVVAOLKIVPAIPS6WSPOQLNVUQIU",
            "UBIA2AUVZ5BHQW4PYWN5XHJBXTC3QY7U2MVZJKQ33C57LM7J6XUEQG6Y",
            "2cebcdd896e87348018ef3113340895a2e12904e764e4df458e43ab1fb395db503de716c953de756cdd322b93d6caa3860659a27d4b170706f3143bc9cf80e08",
        ],
    ];
    const MESSAGE: &[u8] = b"a nonce of the server";

    #[test]
    fn keys_and_signatures_are_what_another_implementation_makes_of_the_same_seed() {
        for [seed, public, signature] in KNOWN {
            let key = UserKey::from_seed(seed).unwrap();
            let signed: String = key.sign(MESSAGE).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!((key.seed().as_str(), key.public_key().as_str(), signed.as_str()), (seed, public, signature));
        }
    }

    #[test]
    fn a_new_key_is_read_back_and_is_no_other() {
        let [first, second] = [UserKey::generate().unwrap(), UserKey::generate().unwrap()];
        assert_eq!(UserKey::from_seed(&first.seed()).unwrap().public_key(), first.public_key());
        assert_ne!(first.public_key(), second.public_key());
    }

    #[test]
    fn a_seed_with_any_letter_changed_is_refused() {
        let [seed, ..] = KNOWN[0];
        for index in 0..seed.len() {
            for letter in
                "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567a1 ".chars().filter(|letter| !seed[index..].starts_with(*letter))
            {
                let changed = format!("{}{letter}{}", &seed[..index], &seed[index + 1..]);
                assert_eq!(UserKey::from_seed(&changed).err(), Some(NKeyError::NoSeed), "{changed}");
            }
        }
    }

    #[test]
    fn what_is_no_seed_of_a_user_is_refused() {
        let [seed, public, _] = KNOWN[0];
        // Of an account, from the tests of the Go implementation.
        let account = "SAAPN4W3EG6KCJGUQTKTJ5GSB5NHK5CHAJL4DBGFUM3HHROI4XUEP4OBK4";
        for text in [
            "",
            "S",
            "SU",
            public,
            account,
            &seed[..57],
            &format!("{seed}A"),
            &format!("{seed}="),
            &seed.to_lowercase(),
            "ÄÖ",
        ] {
            assert_eq!(UserKey::from_seed(text).err(), Some(NKeyError::NoSeed), "{text:?}");
        }
    }

    #[test]
    fn a_key_printed_for_people_shows_no_seed() {
        let [seed, public, _] = KNOWN[0];
        let shown = format!("{:?}", UserKey::from_seed(seed).unwrap());
        assert!(shown.contains(public) && !shown.contains(&seed[2..]), "{shown}");
    }
}
