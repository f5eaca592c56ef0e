//! Why a camera gives no pictures, with what to do.

use schemas::FaultNote;

/// Why a camera gives no pictures.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CameraError {
    /// No connection: refused, no route, unknown host.
    #[error("could not connect to {address}: {why}")]
    Unreachable {
        /// The address without its login.
        address: String,
        /// The system's reason.
        why: String,
    },
    /// It did not answer in time.
    #[error("{address} did not answer {step} within {seconds} s")]
    Timeout {
        /// The address without its login.
        address: String,
        /// What was waited for, such as `DESCRIBE`.
        step: &'static str,
        /// How long was waited.
        seconds: u64,
    },
    /// The login is missing or wrong.
    #[error("{address} refused the login: {why}")]
    Login {
        /// The address without its login.
        address: String,
        /// Whether one was given, and what the camera said.
        why: String,
    },
    /// The password of the login is not where it should be.
    #[error("the password cannot be read from {from}: {why}")]
    Password {
        /// The environment variable or file.
        from: String,
        /// What is wrong with it.
        why: String,
    },
    /// The address leads to nothing.
    #[error("{address} has no such path (status {status})")]
    NotFound {
        /// The address without its login.
        address: String,
        /// Status of the answer.
        status: u16,
    },
    /// Another status that is no success.
    #[error("{address} answered with status {status}")]
    Status {
        /// The address without its login.
        address: String,
        /// Status of the answer.
        status: u16,
    },
    /// It answered with something that is no picture.
    #[error("{address} sent {content}, not a picture")]
    NotAPicture {
        /// The address without its login.
        address: String,
        /// What was sent, such as `text/html`.
        content: String,
    },
    /// It redirects to another host.
    #[error("{address} redirects to another host, {to}")]
    Redirected {
        /// The address without its login.
        address: String,
        /// Host of the target.
        to: String,
    },
    /// Its certificate is not trusted.
    #[error("{address} has a certificate that is not trusted: {why}")]
    Certificate {
        /// The address without its login.
        address: String,
        /// What is wrong with it.
        why: String,
    },
    /// Its coding cannot be decoded here.
    #[error("{address}: {codec} needs the program ffmpeg, which is not installed")]
    NeedsFfmpeg {
        /// The address without its login.
        address: String,
        /// What it is needed for, such as `h265` or `a video file`.
        codec: String,
    },
    /// Its coding cannot be decoded at all.
    #[error("{address} sends {codec}, which is not supported")]
    Codec {
        /// The address without its login.
        address: String,
        /// The coding.
        codec: String,
    },
    /// It is connected, but no picture arrived for a while.
    #[error("no picture from {address} for {seconds} s, although it is connected")]
    Silent {
        /// The address without its login.
        address: String,
        /// How long was waited.
        seconds: u64,
    },
    /// It sends pictures, but none that can be decoded without those before it.
    #[error("no key frame from {address} for {seconds} s, although {received} pictures arrived")]
    NoKeyFrame {
        /// The address without its login.
        address: String,
        /// How long was waited.
        seconds: u64,
        /// Coded pictures that arrived meanwhile.
        received: u64,
    },
    /// The connection ended.
    #[error("{address} closed the connection{}", .why.as_ref().map(|why| format!(": {why}")).unwrap_or_default())]
    Closed {
        /// The address without its login.
        address: String,
        /// What it said, if anything.
        why: Option<String>,
    },
    /// Pictures arrive damaged.
    #[error("pictures from {address} cannot be decoded: {why}")]
    Damaged {
        /// The address without its login.
        address: String,
        /// The decoder's reason.
        why: String,
    },
    /// A file, folder or device cannot be read.
    #[error("{address} cannot be read: {why}")]
    Unreadable {
        /// The path.
        address: String,
        /// The system's reason.
        why: String,
    },
}

impl CameraError {
    /// Stable word for programs, in snake case.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => "camera_unreachable",
            Self::Timeout { .. } => "camera_timeout",
            Self::Login { .. } => "camera_login",
            Self::Password { .. } => "camera_password",
            Self::NotFound { .. } => "camera_path_unknown",
            Self::Status { .. } => "camera_status",
            Self::NotAPicture { .. } => "camera_no_picture",
            Self::Redirected { .. } => "camera_redirected",
            Self::Certificate { .. } => "camera_certificate",
            Self::NeedsFfmpeg { .. } => "camera_needs_ffmpeg",
            Self::Codec { .. } => "camera_codec",
            Self::Silent { .. } => "camera_silent",
            Self::NoKeyFrame { .. } => "camera_no_key_frame",
            Self::Closed { .. } => "camera_closed",
            Self::Damaged { .. } => "camera_damaged",
            Self::Unreadable { .. } => "camera_unreadable",
        }
    }

    /// Whether trying again soon is of no use, or harms: cameras lock accounts after a few wrong passwords.
    pub fn needs_a_person(&self) -> bool {
        matches!(
            self,
            Self::Login { .. }
                | Self::NotFound { .. }
                | Self::NotAPicture { .. }
                | Self::Redirected { .. }
                | Self::Certificate { .. }
                | Self::NeedsFfmpeg { .. }
                | Self::Codec { .. }
        )
    }

    /// What a person can do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => "check that the camera is on, and its address and port; it is tried again",
            Self::Timeout { .. } | Self::Silent { .. } | Self::Closed { .. } => {
                "if it stays so, restart the camera; it is tried again"
            }
            Self::Login { .. } => {
                "set user and password_file (or password_env) of the camera; wrong passwords may lock its account"
            }
            Self::Password { .. } => "set the variable, or write the password into the first line of the file",
            Self::NoKeyFrame { .. } => {
                "set the camera's key frame interval (I-frame interval, GOP) to 1 or 2 s, and turn gradual refresh and \
                 smart coding (H.264+, Zipstream) off"
            }
            Self::NotFound { .. } => "check the path of the address; `tributary camera find` asks cameras for theirs",
            Self::Status { .. } => "check the address in a browser; it is tried again",
            Self::NotAPicture { .. } => {
                "the address must lead to a picture or a video, not to a page; `tributary camera find` asks cameras for theirs"
            }
            Self::Redirected { .. } => {
                "use the address it redirects to, if you trust it: logins are not sent to other hosts"
            }
            Self::Certificate { .. } => "set authority of the camera to the PEM file of the authority that signed it",
            Self::NeedsFfmpeg { .. } => "install ffmpeg, or set the camera to H.264 or MJPEG",
            Self::Codec { .. } => "set the camera to H.264, MJPEG or snapshots",
            Self::Damaged { .. } => "check the network and the camera's settings; it is tried again",
            Self::Unreadable { .. } => {
                "check the path and its permissions; the address of a camera on the network begins with rtsp:// or http://"
            }
        }
    }

    /// As a fault for people and programs.
    pub fn note(&self) -> FaultNote {
        FaultNote::new(self.kind(), self.to_string(), self.remedy())
    }
}
