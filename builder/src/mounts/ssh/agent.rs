//! An agent of our own, for keys in files: it tells which there are, and signs.

use std::os::unix::net::UnixStream;
use std::path::Path;

use super::key::{Key, KeyError, Reader, string};
use super::{FAILURE, REQUEST_IDENTITIES, SIGN_REQUEST, message};

const IDENTITIES_ANSWER: u8 = 12;
const SIGN_RESPONSE: u8 = 14;

/// Keys of one id, in the order given.
pub struct Keys(Vec<(Key, String)>);

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(_, name)| name)).finish()
    }
}

impl Keys {
    pub(super) fn new() -> Self {
        Self(Vec::new())
    }

    /// Takes a file's key. Its name is what an agent shows as comment.
    pub(super) fn add(&mut self, path: &Path) -> Result<(), KeyError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.0.push((Key::read(path)?, name));
        Ok(())
    }

    /// Answers one connection to its end.
    pub(super) fn serve(&self, mut client: &UnixStream) -> std::io::Result<()> {
        use std::io::Write;
        while let Some(request) = message(&mut client)? {
            let reply = self.answer(&request[4..]);
            client.write_all(&reply.map_or_else(|| FAILURE.to_vec(), |reply| string(&reply)))?;
        }
        Ok(())
    }

    fn answer(&self, request: &[u8]) -> Option<Vec<u8>> {
        match request.split_first()? {
            (&REQUEST_IDENTITIES, _) => {
                let count = u32::try_from(self.0.len()).ok()?;
                let keys =
                    self.0.iter().flat_map(|(key, name)| [string(&key.public), string(name.as_bytes())]);
                let head = [&[IDENTITIES_ANSWER][..], &count.to_be_bytes()].concat();
                Some(keys.fold(head, |all, next| [all, next].concat()))
            }
            (&SIGN_REQUEST, body) => {
                let mut body = Reader(body);
                let (public, data, flags) = (body.string().ok()?, body.string().ok()?, body.u32().ok()?);
                let (key, _) = self.0.iter().find(|(key, _)| key.public == public)?;
                Some([vec![SIGN_RESPONSE], string(&key.sign(data, flags)?)].concat())
            }
            _ => None,
        }
    }
}
