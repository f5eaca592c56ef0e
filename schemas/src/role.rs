//! Who takes part: workers, and who else connects to a server.

crate::vocabulary! {
    /// Who connects to a server. Workers write it into heartbeats and dead letters.
    pub enum Role {
        /// A camera or a scanner: publishes images under its own name.
        Camera = "camera",
        /// Recognizes images at a site.
        Recognizer = "recognizer",
        /// Carries between a site and the cloud.
        Courier = "courier",
        /// Trains at a site.
        Trainer = "trainer",
        /// Makes room at a site.
        Janitor = "janitor",
        /// Tells answers in JSON at a site.
        Notifier = "notifier",
        /// A site's courier at the cloud's end of the link.
        Site = "site",
        /// Verifies in the cloud.
        Verifier = "verifier",
        /// Merges updates in the cloud.
        Aggregator = "aggregator",
        /// Lets releases out in the cloud.
        Releaser = "releaser",
        /// A person, who may do everything at the place.
        Operator = "operator",
        /// An operator of the server itself: reloads it and ends connections.
        System = "system",
    }
}

impl Role {
    /// Workers of a site that connect to its server.
    pub const AT_SITE: [Self; 5] = [Self::Recognizer, Self::Courier, Self::Trainer, Self::Janitor, Self::Notifier];
    /// Workers of the cloud that connect to its server.
    pub const IN_CLOUD: [Self; 3] = [Self::Verifier, Self::Aggregator, Self::Releaser];
}
