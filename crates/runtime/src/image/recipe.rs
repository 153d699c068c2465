//! The recipes that are compiled in.

use std::collections::BTreeMap;

use serde::Deserialize;
use warren_model::ImageName;

use super::error::ImageError;

/// Name and text of each recipe.
const RECIPES: &[(&str, &str)] = &[("debian", include_str!("../../../../images/debian.toml"))];

/// How an image is built.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Recipe {
    #[serde(rename = "description")]
    pub _description: String,
    /// The Debian release.
    pub suite: String,
    /// The set of packages that mmdebstrap starts from.
    pub variant: String,
    pub components: Vec<String>,
    pub packages: Vec<String>,
    /// blake3 of the text, in hex.
    #[serde(skip)]
    pub digest: String,
}

/// Every recipe by name.
pub(super) fn all() -> Result<BTreeMap<ImageName, Recipe>, ImageError> {
    let mut recipes = BTreeMap::new();
    for (name, text) in RECIPES {
        let Ok(name) = name.parse::<ImageName>() else { continue };
        let mut recipe: Recipe =
            toml::from_str(text).map_err(|source| ImageError::Recipe { name: name.clone(), source })?;
        recipe.digest = blake3::hash(text.as_bytes()).to_hex().to_string();
        recipes.insert(name, recipe);
    }
    Ok(recipes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_recipe_reads_and_the_default_image_has_one() {
        let recipes = all().unwrap();
        assert_eq!(recipes.len(), RECIPES.len());
        let default = &recipes[&ImageName::default_image()];
        for package in ["bash", "coreutils", "python3", "curl", "git", "iputils-ping", "iproute2", "ca-certificates"] {
            assert!(default.packages.iter().any(|have| have == package), "{package}");
        }
    }
}
