//! What encrypts the data of a session with a KMS key: AES-256 in Galois/Counter mode, the nonce in front.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 12 | nonce, random or counted by the sender |
//! | 12 | n | the data, encrypted |
//! | 12 + n | 16 | tag |
//!
//! A session has one data key of 64 bytes: with the first half the agent encrypts, with the second one the client.

use bytes::Bytes;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

/// Bytes of the data key that KMS is asked for.
pub const KEY_LENGTH: usize = 64;

/// Both directions' keys, at one end.
pub struct Cipher {
    seals: LessSafeKey,
    opens: LessSafeKey,
}

impl Cipher {
    /// The agent's end. `None` if the key is not of [`KEY_LENGTH`].
    pub fn of_agent(key: &[u8]) -> Option<Self> {
        let (agent, client) = halves(key)?;
        Some(Self { seals: agent, opens: client })
    }

    /// The client's end. `None` if the key is not of [`KEY_LENGTH`].
    pub fn of_client(key: &[u8]) -> Option<Self> {
        let (agent, client) = halves(key)?;
        Some(Self { seals: client, opens: agent })
    }

    /// Encrypts, under a nonce of its own.
    pub fn seal(&self, data: &[u8]) -> Bytes {
        let nonce: [u8; NONCE_LEN] = rand::random();
        let mut sealed = data.to_vec();
        let aad = Aad::empty();
        // Fails for data beyond 64 GB only.
        let _ = self.seals.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut sealed);
        [&nonce[..], &sealed].concat().into()
    }

    /// Decrypts. `None` for what the other end has not encrypted.
    pub fn open(&self, sealed: &[u8]) -> Option<Bytes> {
        let (nonce, data) = sealed.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut data = data.to_vec();
        let length = self.opens.open_in_place(nonce, Aad::empty(), &mut data).ok()?.len();
        data.truncate(length);
        Some(data.into())
    }
}

fn halves(key: &[u8]) -> Option<(LessSafeKey, LessSafeKey)> {
    let key: &[u8; KEY_LENGTH] = key.try_into().ok()?;
    let (agent, client) = key.split_at(KEY_LENGTH / 2);
    let half = |half| UnboundKey::new(&AES_256_GCM, half).map(LessSafeKey::new).ok();
    Some((half(agent)?, half(client)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_end_opens_what_the_other_has_sealed() {
        let key: Vec<u8> = (0..64).collect();
        let (agent, client) = (Cipher::of_agent(&key).unwrap(), Cipher::of_client(&key).unwrap());
        for data in [&b""[..], b"\n", b"twelve bytes and some more"] {
            let sealed = agent.seal(data);
            assert_eq!(sealed.len(), data.len() + 28);
            assert_eq!(client.open(&sealed).unwrap(), data);
            assert_eq!(agent.open(&client.seal(data)).unwrap(), data);
            assert_eq!(agent.open(&sealed), None, "its own");
            let mut damaged = sealed.to_vec();
            damaged[13] ^= 1;
            assert_eq!(client.open(&damaged), None);
        }
        assert_eq!(client.open(b"short"), None);
        assert!(Cipher::of_agent(&key[..32]).is_none());
    }

    /// McGrew and Viega, test case 14 of the mode's submission: key and nonce of zeros, 16 bytes of zeros.
    #[test]
    fn the_layout_is_the_documented_one() {
        let cipher = Cipher::of_client(&[0; 64]).unwrap();
        let hex = "000000000000000000000000cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919";
        let sealed: Vec<u8> =
            (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[at * 2..at * 2 + 2], 16).unwrap()).collect();
        assert_eq!(cipher.open(&sealed).unwrap(), [0; 16][..]);
    }
}
