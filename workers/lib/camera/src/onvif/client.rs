//! Requests to a camera's ONVIF services over HTTP.

use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Response, StatusCode};
use time::OffsetDateTime;
use tokio::time::{Instant, timeout};
use url::Url;

use super::answers::{self, MediaServices, ReachedHost};
use super::soap::{self, SoapFault, plain};
use super::xml::{self, XmlElement};
use super::{MediaVersion, OnvifCamera, OnvifError, OnvifProfile};
use crate::http_client::{HttpClient, HttpPurpose};
use crate::{CameraCredentials, CameraError};

/// How long an answer may take, all of it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(8);
/// Characters that are shown of the kind of an answer that is none of ONVIF.
const CONTENT_TYPE_CHARS: usize = 60;

/// Namespace of the device service.
const DEVICE: &str = "http://www.onvif.org/ver10/device/wsdl";

/// A client of one camera.
pub(super) struct OnvifClient<'a> {
    http: HttpClient,
    host: ReachedHost,
    login: Option<&'a CameraCredentials>,
    /// How far the camera's clock is ahead, milliseconds; 0 until it told.
    ahead_ms: i64,
}

impl<'a> OnvifClient<'a> {
    /// A client of the camera whose device service answers at this address.
    pub(super) fn new(service: &Url, login: Option<&'a CameraCredentials>) -> Self {
        let http = HttpClient::new(&shown(service), HttpPurpose::Onvif, login.cloned(), None);
        Self { http, host: ReachedHost::new(service.clone()), login, ahead_ms: 0 }
    }

    /// Asks the camera who it is and for all its streams. An error after the first answer stands in the result, with
    /// what was learned before.
    pub(super) async fn ask(mut self) -> Result<OnvifCamera, OnvifError> {
        let clock_ahead_ms = self.clock_ahead_ms().await?;
        self.ahead_ms = clock_ahead_ms.unwrap_or(0);
        let mut camera = OnvifCamera::new(self.host.service.clone(), clock_ahead_ms);
        // Cameras count how often a wrong password is tried.
        camera.fault = match self.http.is_login_refused {
            true => Some(self.login_error(self.shown(), None)),
            false => self.describe(&mut camera).await.err(),
        };
        Ok(camera)
    }

    /// How far the camera's clock is ahead. The one request that needs no login; a camera that wants one all the same,
    /// or does not know the time, has none.
    async fn clock_ahead_ms(&mut self) -> Result<Option<i64>, OnvifError> {
        let sent = (Instant::now(), now_ms());
        let (service, body) = (self.host.service.clone(), "<tds:GetSystemDateAndTime/>");
        match self.call(&service, DEVICE, "GetSystemDateAndTime", body, None).await {
            Ok(answer) => {
                // It read its clock halfway, and tells whole seconds, half a second ago on average.
                let halfway_ms = sent.1 + i64::try_from(sent.0.elapsed().as_millis() / 2).unwrap_or(0);
                Ok(answers::clock_ms(&answer).map(|clock_ms| clock_ms + 500 - halfway_ms))
            }
            Err(OnvifError::Refused { .. } | OnvifError::Connection(CameraError::Login { .. })) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn describe(&mut self, camera: &mut OnvifCamera) -> Result<(), OnvifError> {
        let service = self.host.service.clone();
        let information = "<tds:GetDeviceInformation/>";
        match self.call_with_login(&service, DEVICE, "GetDeviceInformation", information).await {
            Ok(answer) => (camera.make, camera.model) = answers::make_and_model(&answer),
            // A wrong password is wrong for what follows, too.
            Err(error) if error.is_login() && self.login.is_some() => return Err(error),
            Err(_) => {}
        }
        let services = self.media_services().await?;
        let (version, url, profiles) = self.profiles(&services).await?;
        camera.profiles = profiles;
        for profile in &mut camera.profiles {
            profile.stream = self.media_address(version, &url, "GetStreamUri", &profile.token).await?;
            profile.snapshot = self.media_address(version, &url, "GetSnapshotUri", &profile.token).await?;
        }
        Ok(())
    }

    /// Where the camera tells of its streams.
    async fn media_services(&mut self) -> Result<MediaServices, OnvifError> {
        let service = self.host.service.clone();
        let of_services = "<tds:GetServices><tds:IncludeCapability>false</tds:IncludeCapability></tds:GetServices>";
        let found = self.call_with_login(&service, DEVICE, "GetServices", of_services).await;
        let found = match found {
            Err(error) if error.is_login() && self.login.is_some() => return Err(error),
            found => found.map(|answer| MediaServices::read(&answer)).unwrap_or_default(),
        };
        if found != MediaServices::default() {
            return Ok(found);
        }
        let of_capabilities = "<tds:GetCapabilities><tds:Category>All</tds:Category></tds:GetCapabilities>";
        let answer = self.call_with_login(&service, DEVICE, "GetCapabilities", of_capabilities).await?;
        Ok(MediaServices::read(&answer))
    }

    /// The profiles of the newest media service that gives any, and where it is.
    async fn profiles(
        &mut self,
        services: &MediaServices,
    ) -> Result<(MediaVersion, Url, Vec<OnvifProfile>), OnvifError> {
        let mut failure = OnvifError::NoStreams { address: self.shown() };
        for (version, address) in [(MediaVersion::Second, &services.media2), (MediaVersion::First, &services.media)] {
            let Some(url) = address.as_deref().and_then(|address| self.host.service(address)) else { continue };
            match self.call_with_login(&url, version.namespace(), "GetProfiles", version.ask_for_profiles()).await {
                Ok(answer) => {
                    let profiles = answers::profiles(&answer);
                    if !profiles.is_empty() {
                        return Ok((version, url, profiles));
                    }
                }
                Err(error) if error.is_login() => return Err(error),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    /// The address of a stream or a snapshot. Many cameras have no snapshots: a refusal is no address, not an error.
    async fn media_address(
        &mut self,
        version: MediaVersion,
        url: &Url,
        method: &'static str,
        token: &str,
    ) -> Result<Option<Url>, OnvifError> {
        match self.call_with_login(url, version.namespace(), method, &version.ask_for_address(method, token)).await {
            Ok(answer) => {
                let media = answer.text_of("Uri").and_then(|uri| self.host.media(uri));
                Ok(media.map(|url| answers::hide_password(url, self.login)))
            }
            Err(OnvifError::Refused { .. } | OnvifError::NotOnvif { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn call_with_login(
        &mut self,
        url: &Url,
        namespace: &str,
        method: &'static str,
        body: &str,
    ) -> Result<XmlElement, OnvifError> {
        self.call(url, namespace, method, body, self.login).await
    }

    /// Sends a request. `login`: what is put into the message, beside what the camera may ask for by HTTP digest.
    async fn call(
        &mut self,
        url: &Url,
        namespace: &str,
        method: &'static str,
        body: &str,
        login: Option<&CameraCredentials>,
    ) -> Result<XmlElement, OnvifError> {
        let camera_now = OffsetDateTime::from_unix_timestamp_nanos(i128::from(now_ms() + self.ahead_ms) * 1_000_000);
        let header = login.zip(camera_now.ok()).and_then(|(login, now)| soap::security_header(login, now));
        let message = soap::envelope(&header.unwrap_or_default(), body);
        let kind = format!("application/soap+xml; charset=utf-8; action=\"{namespace}/{method}\"");
        let kind = HeaderValue::try_from(kind).map(|kind| (CONTENT_TYPE, kind));
        let headers: HeaderMap = kind.into_iter().collect();
        self.http.address = shown(url);
        let exchange = async {
            let response = self.http.post(url, &headers, message.into()).await?;
            self.read(response, url, method).await
        };
        timeout(ANSWER_TIMEOUT, exchange).await.unwrap_or_else(|_| {
            let (address, seconds) = (shown(url), ANSWER_TIMEOUT.as_secs());
            Err(CameraError::Timeout { address, step: method, seconds }.into())
        })
    }

    async fn read(&self, mut response: Response, url: &Url, method: &'static str) -> Result<XmlElement, OnvifError> {
        let status = response.status();
        let address = || shown(url);
        let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        let kind = kind.map(|kind| plain(kind).chars().take(CONTENT_TYPE_CHARS).collect::<String>());
        let mut bytes = Vec::new();
        while let Some(piece) = self.http.next_piece(&mut response, None).await? {
            if bytes.len() + piece.len() > xml::MAX_BYTES {
                return Err(OnvifError::NotOnvif { address: address(), why: xml::XmlError::TooLarge.to_string() });
            }
            bytes.extend_from_slice(&piece);
        }
        let answer = XmlElement::read(&bytes);
        let fault = answer.as_ref().ok().and_then(soap::fault);
        if status == StatusCode::UNAUTHORIZED || fault.as_ref().is_some_and(|fault| fault.is_login) {
            return Err(self.login_error(address(), fault));
        }
        match (fault, answer) {
            (Some(SoapFault { reason, .. }), _) => Err(OnvifError::Refused { address: address(), method, reason }),
            (None, Ok(answer)) if status.is_success() && answer.name() == "Envelope" => Ok(answer),
            (None, _) if status == StatusCode::NOT_FOUND => {
                Err(CameraError::NotFound { address: address(), status: status.as_u16() }.into())
            }
            (None, _) if !status.is_success() => {
                Err(CameraError::Status { address: address(), status: status.as_u16() }.into())
            }
            (None, Ok(_)) => Err(OnvifError::NotOnvif { address: address(), why: "it sent other XML".into() }),
            (None, Err(error)) => {
                let kind = kind.map(|kind| format!("it sent {kind}: ")).unwrap_or_default();
                Err(OnvifError::NotOnvif { address: address(), why: format!("{kind}{error}") })
            }
        }
    }

    fn login_error(&self, address: String, fault: Option<SoapFault>) -> OnvifError {
        let given = match self.login {
            Some(login) => format!("user {} was given", plain(&login.user)),
            None => "none was given".into(),
        };
        let said = fault.map(|fault| format!(" (it said: {})", fault.reason)).unwrap_or_default();
        CameraError::Login { address, why: given + &said }.into()
    }

    fn shown(&self) -> String {
        shown(&self.host.service)
    }
}

/// An address without login and query.
fn shown(url: &Url) -> String {
    url[..url::Position::AfterPath].to_owned()
}

/// Milliseconds since the epoch.
fn now_ms() -> i64 {
    i64::try_from(OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000).unwrap_or(0)
}
