//! Authentication: a client certificate, a bearer token, or nobody in particular.

use std::sync::Arc;

use hawser_api::Error;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{
    AUTHENTICATED, User,
    tokens::{Tokens, unix_now},
};

pub struct Authenticator {
    tokens: Arc<Tokens>,
    anonymous: Arc<User>,
}

impl Authenticator {
    pub fn new(tokens: Arc<Tokens>) -> Self {
        Self { tokens, anonymous: User::anonymous() }
    }

    pub fn tokens(&self) -> &Arc<Tokens> {
        &self.tokens
    }

    /// Who is asking. `certificate` is the connection's user ([`certificate_user`]); `authorization` the header.
    ///
    /// A certificate is asked first, as upstream does. A token that is not good is 401, never anonymous.
    pub fn authenticate(
        &self,
        certificate: Option<&Arc<User>>,
        authorization: Option<&str>,
    ) -> Result<Arc<User>, Error> {
        if let Some(user) = certificate {
            return Ok(user.clone());
        }
        let Some(header) = authorization else {
            return Ok(self.anonymous.clone());
        };
        let token = match header.split_once(' ') {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim(),
            // Other schemes are not ours; upstream takes such a client for anonymous too.
            _ => return Ok(self.anonymous.clone()),
        };
        let (user, _) = self.tokens.authenticate(token, &[], unix_now()).ok_or_else(Error::unauthorized)?;
        Ok(user)
    }
}

/// The user that a verified client certificate names: CN is the name, every O a group (KEP-less, upstream's rule).
pub fn certificate_user(der: &[u8]) -> Option<Arc<User>> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let groups = subject
        .iter_organization()
        .filter_map(|organization| organization.as_str().ok())
        .map(str::to_owned)
        .chain([AUTHENTICATED.to_owned()])
        .collect();
    Some(Arc::new(User { name, groups, ..User::default() }))
}
