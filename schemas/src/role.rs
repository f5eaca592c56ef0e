//! Roles of a server's clients: workers, cameras and people.

crate::vocabulary! {
    /// A kind of client that connects to a server. Workers write it into heartbeats and dead letters.
    pub enum Role {
        /// A camera or a scanner: publishes images under its own name.
        Camera = "camera",
        /// Takes pictures from a site's cameras and publishes those worth recognizing.
        Grabber = "grabber",
        /// Recognizes images at a site.
        Recognizer = "recognizer",
        /// Carries messages between a site and the cloud.
        Courier = "courier",
        /// Trains on a site's labelled images.
        Trainer = "trainer",
        /// Frees disk space at a site.
        Janitor = "janitor",
        /// Publishes final answers in JSON at a site.
        Notifier = "notifier",
        /// A site's courier as the hub knows it, at the other end of the link.
        Site = "site",
        /// Verifies doubtful answers in the cloud.
        Verifier = "verifier",
        /// Merges model updates into releases in the cloud.
        Aggregator = "aggregator",
        /// Decides in the cloud which sites run which release.
        Releaser = "releaser",
        /// A person, with all rights at a site or in the cloud.
        Operator = "operator",
        /// An operator of the NATS server itself: reloads it and closes connections.
        System = "system",
    }
}

impl Role {
    /// Workers that connect to a site's server.
    pub const AT_SITE: [Self; 6] =
        [Self::Grabber, Self::Recognizer, Self::Courier, Self::Trainer, Self::Janitor, Self::Notifier];
    /// Workers that connect to the cloud's server.
    pub const IN_CLOUD: [Self; 3] = [Self::Verifier, Self::Aggregator, Self::Releaser];
}
