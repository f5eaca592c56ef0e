//! SOAP messages to cameras, and what faults in their answers mean.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::digest;
use ring::rand::{SecureRandom, SystemRandom};
use time::OffsetDateTime;
use time::macros::format_description;

use super::xml::{XmlElement, escape};
use crate::CameraCredentials;

/// Names of namespaces in requests.
const NAMESPACES: &str = "xmlns:s=\"http://www.w3.org/2003/05/soap-envelope\" \
xmlns:tds=\"http://www.onvif.org/ver10/device/wsdl\" xmlns:trt=\"http://www.onvif.org/ver10/media/wsdl\" \
xmlns:tr2=\"http://www.onvif.org/ver20/media/wsdl\" xmlns:tt=\"http://www.onvif.org/ver10/schema\"";
/// What the names of WS-Security begin with.
const SECURITY: &str = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-";
/// Longest reason of a fault that is shown, in characters.
const MAX_REASON: usize = 160;

/// A whole request: a header, which may be empty, and a body.
pub(super) fn envelope(header: &str, body: &str) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><s:Envelope {NAMESPACES}><s:Header>{header}</s:Header><s:Body>{body}</s:Body></s:Envelope>"
    )
}

/// The header by which a camera knows the login: a digest that holds for one request, at one time by the camera's own
/// clock. `None` if the system gives no random bytes.
pub(super) fn security_header(login: &CameraCredentials, camera_now: OffsetDateTime) -> Option<String> {
    let mut nonce = [0; 16];
    SystemRandom::new().fill(&mut nonce).ok()?;
    let form = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    let created = camera_now.format(form).ok()?;
    let (user, password) = (escape(&login.user), password_digest(&nonce, &created, &login.password));
    let nonce = STANDARD.encode(nonce);
    Some(format!(
        "<wsse:Security s:mustUnderstand=\"1\" xmlns:wsse=\"{SECURITY}wssecurity-secext-1.0.xsd\" xmlns:wsu=\"{SECURITY}wssecurity-utility-1.0.xsd\"><wsse:UsernameToken><wsse:Username>{user}</wsse:Username><wsse:Password Type=\"{SECURITY}username-token-profile-1.0#PasswordDigest\">{password}</wsse:Password><wsse:Nonce EncodingType=\"{SECURITY}soap-message-security-1.0#Base64Binary\">{nonce}</wsse:Nonce><wsu:Created>{created}</wsu:Created></wsse:UsernameToken></wsse:Security>"
    ))
}

fn password_digest(nonce: &[u8], created: &str, password: &str) -> String {
    let text = [nonce, created.as_bytes(), password.as_bytes()].concat();
    STANDARD.encode(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &text))
}

/// What a camera refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SoapFault {
    /// Whether the login is missing or wrong.
    pub(super) is_login: bool,
    /// The camera's words, for people; never empty.
    pub(super) reason: String,
}

/// The fault that an answer is, if it is one. Both versions of SOAP are understood.
pub(super) fn fault(answer: &XmlElement) -> Option<SoapFault> {
    let fault = if answer.name() == "Fault" { answer } else { answer.find("Fault")? };
    // Codes stand inside codes, the innermost last.
    let codes: Vec<&str> =
        fault.find_all("Value").into_iter().chain(fault.find("faultcode")).map(XmlElement::text).collect();
    let reason = fault.text_of("Text").or_else(|| fault.text_of("faultstring")).or_else(|| fault.text_of("Reason"));
    let reason = plain(reason.or_else(|| codes.last().copied()).unwrap_or_default());
    let reason = if reason.is_empty() { "it gave no reason".into() } else { reason };
    let says_login = |text: &str| {
        let text: String = text.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase();
        ["notauthorized", "failedauthentication", "unauthorized", "failedcheck"].iter().any(|word| text.contains(word))
    };
    let is_login = codes.iter().any(|code| says_login(code)) || says_login(&reason);
    Some(SoapFault { is_login, reason })
}

/// A camera's text for people: short, on one line.
pub(super) fn plain(text: &str) -> String {
    let words = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join(" ").chars().take(MAX_REASON).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From the ONVIF Application Programmer's Guide.
    #[test]
    fn the_digest_is_that_of_the_guide() {
        let nonce = STANDARD.decode("LKqI6G/AikKCQrN0zqZFlg==").unwrap();
        assert_eq!(password_digest(&nonce, "2010-09-16T07:50:45Z", "userpassword"), "tuOSpGlFlIXsozq4HFNeeGeFLEI=");
    }

    #[test]
    fn a_header_escapes_the_user_holds_no_password_and_is_new_each_time() {
        let login = CameraCredentials { user: "<a&b>".into(), password: "secret".into() };
        let header = || security_header(&login, OffsetDateTime::UNIX_EPOCH).unwrap();
        let (first, second) = (header(), header());
        assert!(first.contains("<wsse:Username>&lt;a&amp;b&gt;</wsse:Username>"), "{first}");
        assert!(first.contains("<wsu:Created>1970-01-01T00:00:00.000Z<"), "{first}");
        assert!(!first.contains("secret"));
        assert_ne!(first, second, "a camera refuses a nonce that it has seen");
        let read = XmlElement::read(envelope(&first, "<trt:GetProfiles/>").as_bytes()).unwrap();
        assert_eq!(read.text_of("Username"), Some("<a&b>"));
    }

    #[test]
    fn faults_of_both_versions_are_understood() {
        let of = |text: &str| fault(&XmlElement::read(text.as_bytes()).unwrap());
        let newer = "<s:Envelope><s:Body><s:Fault><s:Code><s:Value>s:Sender</s:Value><s:Subcode><s:Value>ter:NotAuthorized</s:Value></s:Subcode></s:Code><s:Reason><s:Text xml:lang='en'>Sender not\n Authorized\u{7}</s:Text></s:Reason></s:Fault></s:Body></s:Envelope>";
        assert_eq!(of(newer), Some(SoapFault { is_login: true, reason: "Sender not Authorized".into() }));
        let bare = "<Envelope><Body><Fault><Code><Value>env:Sender</Value><Subcode><Value>wsse:FailedAuthentication</Value></Subcode></Code></Fault></Body></Envelope>";
        assert_eq!(of(bare), Some(SoapFault { is_login: true, reason: "wsse:FailedAuthentication".into() }));
        let older =
            "<E><B><Fault><faultcode>Client</faultcode><faultstring>no such method</faultstring></Fault></B></E>";
        assert_eq!(of(older), Some(SoapFault { is_login: false, reason: "no such method".into() }));
        let empty = of("<E><B><Fault/></B></E>").unwrap();
        assert_eq!(empty, SoapFault { is_login: false, reason: "it gave no reason".into() });
        assert_eq!(of("<E><B><GetProfilesResponse/></B></E>"), None);
        let long = format!("<E><Fault><faultstring>{}</faultstring></Fault></E>", "a".repeat(10_000));
        assert_eq!(of(&long).unwrap().reason.len(), MAX_REASON);
    }
}
