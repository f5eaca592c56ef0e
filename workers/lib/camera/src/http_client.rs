//! Requests to a camera over HTTP: login, redirects, and what went wrong in a word.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http_auth::{PasswordClient, PasswordParams};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue, LOCATION, WWW_AUTHENTICATE};
use reqwest::{Client, Method, Response, StatusCode, redirect};
use url::{Position, Url};

use crate::address::CameraCredentials;
use crate::error::CameraError;
use crate::tls;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the camera may be silent while it is expected to send.
pub(crate) const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// Most redirects in a row.
const MAX_REDIRECTS: usize = 5;

/// What a camera is asked for over HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HttpPurpose {
    /// Pictures: one connection for all, and whichever login the camera asks for.
    Pictures,
    /// Its services: a connection for each request, as some cameras close those that they promised to keep, and a login
    /// by digest alone, never readable.
    Onvif,
}

/// A request, which may have to be sent again with a login.
struct HttpRequest<'a> {
    method: Method,
    url: &'a Url,
    headers: &'a HeaderMap,
    body: Bytes,
}

/// A camera that is asked over HTTP.
pub(crate) struct HttpClient {
    /// The address as it may be shown.
    pub address: String,
    /// Whether the camera refused the login.
    pub is_login_refused: bool,
    purpose: HttpPurpose,
    login: Option<CameraCredentials>,
    authority: Option<PathBuf>,
    /// One for each scheme, as TLS is prepared only where it is used.
    plain: Option<Client>,
    encrypted: Option<Client>,
    /// What the camera asked for, kept so that not every request is refused first.
    challenge: Option<PasswordClient>,
}

impl HttpClient {
    pub(crate) fn new(
        address: &str,
        purpose: HttpPurpose,
        login: Option<CameraCredentials>,
        authority: Option<PathBuf>,
    ) -> Self {
        Self {
            address: address.into(),
            is_login_refused: false,
            purpose,
            login,
            authority,
            plain: None,
            encrypted: None,
            challenge: None,
        }
    }

    /// Asks for a picture or a stream. An answer of status 304 comes only where `headers` ask for it.
    ///
    /// # Errors
    /// There is no connection, or the answer is neither a success nor 304.
    pub(crate) async fn get(&mut self, url: &Url, headers: &HeaderMap) -> Result<Response, CameraError> {
        let (mut url, mut was_refused, mut redirects) = (url.clone(), false, 0);
        loop {
            let request = HttpRequest { method: Method::GET, url: &url, headers, body: Bytes::new() };
            let response = self.send(&request).await?;
            let status = response.status();
            if status == StatusCode::UNAUTHORIZED {
                self.note_challenge(&response, was_refused)?;
                was_refused = true;
            } else if status.is_redirection() && status != StatusCode::NOT_MODIFIED {
                redirects += 1;
                url = self.redirected(&url, &response, redirects)?;
            } else if status.is_success() || status == StatusCode::NOT_MODIFIED && !headers.is_empty() {
                return Ok(response);
            } else {
                return Err(self.refusal(status.as_u16()));
            }
        }
    }

    /// Sends a message, and once more if the camera asks for a login that it can be given. The answer may have any status.
    ///
    /// # Errors
    /// There is no connection.
    pub(crate) async fn post(&mut self, url: &Url, headers: &HeaderMap, body: Bytes) -> Result<Response, CameraError> {
        let request = HttpRequest { method: Method::POST, url, headers, body };
        let response = self.send(&request).await?;
        if response.status() != StatusCode::UNAUTHORIZED || self.note_challenge(&response, false).is_err() {
            return Ok(response);
        }
        let response = self.send(&request).await?;
        self.is_login_refused = response.status() == StatusCode::UNAUTHORIZED;
        Ok(response)
    }

    async fn send(&mut self, request: &HttpRequest<'_>) -> Result<Response, CameraError> {
        let HttpRequest { method, url, headers, body } = request;
        let client = self.client(url.scheme()).await?;
        let mut sending = client.request(method.clone(), (*url).clone()).headers((*headers).clone());
        if let Some(authorization) = self.authorization(request)? {
            sending = sending.header(AUTHORIZATION, authorization);
        }
        if !body.is_empty() {
            sending = sending.body(body.clone());
        }
        match tokio::time::timeout(CONNECT_TIMEOUT + READ_TIMEOUT, sending.send()).await {
            Ok(sent) => sent.map_err(|error| self.fault(error)),
            Err(_) => Err(self.timeout("the request", READ_TIMEOUT)),
        }
    }

    /// The next piece of an answer's body; `None` after its last. Waits no longer than `limit`, if there is one.
    ///
    /// # Errors
    /// The connection ended early, or the wait did.
    pub(crate) async fn next_piece(
        &self,
        response: &mut Response,
        limit: Option<Duration>,
    ) -> Result<Option<bytes::Bytes>, CameraError> {
        let piece = match limit {
            None => response.chunk().await,
            Some(limit) => match tokio::time::timeout(limit, response.chunk()).await {
                Ok(piece) => piece,
                Err(_) => return Err(self.timeout("the rest of a picture", limit)),
            },
        };
        piece.map_err(|error| self.fault(error))
    }

    async fn client(&mut self, scheme: &str) -> Result<Client, CameraError> {
        let is_encrypted = scheme == "https";
        let made = if is_encrypted { &self.encrypted } else { &self.plain };
        if let Some(client) = made {
            return Ok(client.clone());
        }
        // The client uses the process's TLS provider and panics without one; an existing one is kept.
        let _already_set = rustls::crypto::ring::default_provider().install_default();
        let builder = Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(redirect::Policy::none())
            .pool_max_idle_per_host(usize::from(self.purpose == HttpPurpose::Pictures))
            .http1_only()
            // Some cameras know headers by their usual spelling only.
            .http1_title_case_headers()
            .no_proxy();
        let builder = match is_encrypted {
            false => builder.tls_certs_only([]),
            true => {
                let authority = tls::read_authority(self.authority.as_deref()).await?;
                builder.tls_backend_preconfigured(tls::client_config(authority, &self.address)?)
            }
        };
        let client = builder.build().map_err(|error| self.fault(error))?;
        *(if is_encrypted { &mut self.encrypted } else { &mut self.plain }) = Some(client.clone());
        Ok(client)
    }

    /// The header that answers the camera's latest challenge.
    fn authorization(&mut self, request: &HttpRequest<'_>) -> Result<Option<HeaderValue>, CameraError> {
        let (Some(challenge), Some(login)) = (&mut self.challenge, &self.login) else { return Ok(None) };
        let given = PasswordParams {
            username: &login.user,
            password: &login.password,
            uri: &request.url[Position::BeforePath..Position::AfterQuery],
            method: request.method.as_str(),
            body: Some(&request.body),
        };
        let answer = challenge.respond(&given).ok().and_then(|answer| HeaderValue::try_from(answer).ok());
        let mut answer = answer.ok_or_else(|| self.login_fault("it asks for a login in a way that is not known"))?;
        answer.set_sensitive(true);
        Ok(Some(answer))
    }

    /// Takes the camera's challenge, unless a login was refused for this very request already: cameras lock accounts.
    fn note_challenge(&mut self, response: &Response, was_refused: bool) -> Result<(), CameraError> {
        if self.login.is_none() {
            return Err(self.login_fault("it asks for a user and a password, and none is given"));
        }
        if was_refused {
            return Err(self.login_fault("the user or the password is wrong"));
        }
        let accepts = |scheme: &str| self.purpose == HttpPurpose::Pictures || scheme.eq_ignore_ascii_case("digest");
        let named = response.headers().get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let challenges = named.filter_map(|value| http_auth::parse_challenges(value).ok()).flatten();
        let accepted = challenges.filter(|challenge| accepts(challenge.scheme));
        let challenge = accepted.fold(PasswordClient::builder(), |builder, challenge| builder.challenge(&challenge));
        self.challenge = challenge.build().ok();
        match self.challenge {
            Some(_) => Ok(()),
            None => Err(self.login_fault("it asks for a login in a way that is not known")),
        }
    }

    /// Where a redirect leads, if that is the same host, and no less private.
    fn redirected(&self, from: &Url, response: &Response, redirects: usize) -> Result<Url, CameraError> {
        let status = response.status().as_u16();
        let target = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let Some(target) = target.and_then(|target| from.join(target).ok()) else {
            return Err(CameraError::Status { address: self.address.clone(), status });
        };
        let is_same = target.host() == from.host() && matches!(target.scheme(), "http" | "https");
        let loses_privacy = from.scheme() == "https" && target.scheme() != "https";
        if !is_same || loses_privacy {
            let host = target.host_str().unwrap_or("another scheme");
            let port = target.port().map(|port| format!(":{port}")).unwrap_or_default();
            let to = format!("{}://{host}{port}", target.scheme());
            return Err(CameraError::Redirected { address: self.address.clone(), to });
        }
        match redirects <= MAX_REDIRECTS {
            true => Ok(target),
            false => Err(CameraError::Status { address: self.address.clone(), status }),
        }
    }

    fn refusal(&self, status: u16) -> CameraError {
        let address = self.address.clone();
        match status {
            404 | 410 => CameraError::NotFound { address, status },
            403 => self.login_fault("this user may not see it (status 403)"),
            _ => CameraError::Status { address, status },
        }
    }

    fn login_fault(&self, why: &str) -> CameraError {
        CameraError::Login { address: self.address.clone(), why: why.into() }
    }

    fn timeout(&self, step: &'static str, limit: Duration) -> CameraError {
        CameraError::Timeout { address: self.address.clone(), step, seconds: limit.as_secs() }
    }

    /// What went wrong, without the URL, whose query may hold a password.
    fn fault(&self, error: reqwest::Error) -> CameraError {
        let (address, error) = (self.address.clone(), error.without_url());
        if let Some(why) = tls::certificate_fault(&error) {
            return CameraError::Certificate { address, why };
        }
        let why = tls::innermost_reason(&error);
        match (error.is_connect(), error.is_timeout()) {
            (true, true) => self.timeout("the connection", CONNECT_TIMEOUT),
            (true, false) => CameraError::Unreachable { address, why },
            (false, true) => self.timeout("the request", READ_TIMEOUT),
            (false, false) => CameraError::Closed { address, why: Some(why) },
        }
    }
}

/// Headers that ask for a picture only if it changed since `earlier`, an answer of the camera.
pub(crate) fn unless_changed(earlier: &HeaderMap) -> HeaderMap {
    use reqwest::header::{ETAG, IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED};
    let pairs: [(HeaderName, HeaderName); 2] = [(ETAG, IF_NONE_MATCH), (LAST_MODIFIED, IF_MODIFIED_SINCE)];
    let asked = pairs.into_iter().filter_map(|(told, asked)| Some((asked, earlier.get(told)?.clone())));
    asked.collect()
}
