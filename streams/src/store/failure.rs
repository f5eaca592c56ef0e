//! Classifies an object store's errors by their remedy, without showing keys.

use std::io;

use object_store::Error;

use crate::error::CarryError;

pub(super) fn classify_error(store: String, is_folder: bool, what: String, error: Error) -> CarryError {
    if let Some(error) = system(&error).filter(|_| is_folder) {
        if is_denied(error) {
            return CarryError::StoreDenied { store, what, why: error.to_string() };
        }
        if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            return CarryError::StoreFull { store, why: error.to_string() };
        }
    }
    match error {
        _ if is_refused(&error) => CarryError::StoreDenied { store, what, why: code(&error) },
        _ if no_bucket(&error) => {
            CarryError::StoreUrl { url: store, why: "there is no such bucket; create it, or name another".into() }
        }
        _ => CarryError::Store { store, what, source: error.into() },
    }
}

/// Whether there is no such object. A missing bucket does not count: somebody misspelled it.
pub(super) fn is_absent(error: &Error) -> bool {
    matches!(error, Error::NotFound { .. }) && !no_bucket(error)
}

fn is_refused(error: &Error) -> bool {
    matches!(error, Error::PermissionDenied { .. } | Error::Unauthenticated { .. })
        || names_status(error, "403")
        || names_status(error, "401")
}

/// Listings and multipart uploads hide the status in their text.
fn names_status(error: &Error, status: &str) -> bool {
    error.to_string().contains(&format!("status code: {status} "))
}

/// The code of S3, that of Azure, and the sentence of Google's store, which has none.
fn no_bucket(error: &Error) -> bool {
    let text = error.to_string();
    ["NoSuchBucket", "ContainerNotFound", "specified bucket does not exist"].iter().any(|phrase| text.contains(phrase))
}

/// The server's error code for a refusal. The rest of its response can repeat what we signed.
fn code(error: &Error) -> String {
    let text = error.to_string();
    let code = text.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>"));
    code.map_or("the keys are wrong or lack the permission", |(code, _)| code).chars().take(100).collect()
}

/// The operating system's error among the causes.
fn system(error: &Error) -> Option<&io::Error> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        cause = error.source();
    }
    None
}

pub(super) fn is_denied(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_classified_by_their_remedy() {
        let folder = |kind: io::ErrorKind| {
            let error = Error::Generic { store: "x", source: io::Error::from(kind).into() };
            classify_error("/store".into(), true, "storing x".into(), error)
        };
        assert!(matches!(folder(io::ErrorKind::StorageFull), CarryError::StoreFull { .. }));
        assert!(matches!(folder(io::ErrorKind::PermissionDenied), CarryError::StoreDenied { .. }));
        assert!(matches!(folder(io::ErrorKind::TimedOut), CarryError::Store { .. }));
        assert!(folder(io::ErrorKind::StorageFull).is_transient() && folder(io::ErrorKind::TimedOut).is_transient());
    }

    #[test]
    fn a_refusal_shows_the_servers_code_and_nothing_else_of_its_response() {
        let answer = "403: <Error><Code>SignatureDoesNotMatch</Code><StringToSign>hunter2</StringToSign></Error>";
        let error = Error::PermissionDenied { path: "x".into(), source: answer.into() };
        let error = classify_error("s3://bucket".into(), false, "storing x".into(), error);
        let mut text = error.to_string();
        text.extend(std::error::Error::source(&error).map(ToString::to_string));
        assert!(text.contains("(SignatureDoesNotMatch)") && !text.contains("hunter2"), "{text}");
    }

    #[test]
    fn a_misspelled_bucket_is_not_an_absent_object() {
        let absent = |text: &str| Error::NotFound { path: "x".into(), source: text.into() };
        assert!(is_absent(&absent("<Code>NoSuchKey</Code>")));
        assert!(!is_absent(&absent("<Code>NoSuchBucket</Code>")));
        let error =
            classify_error("s3://bucket".into(), false, "reading x".into(), absent("<Code>NoSuchBucket</Code>"));
        assert!(matches!(error, CarryError::StoreUrl { .. }), "{error}");
    }
}
