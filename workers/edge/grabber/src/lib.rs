//! The grabber: takes pictures from a site's cameras and publishes those worth recognizing.
