//! The stand-in plugin against the stock plugin's bytes: every scenario is run with the stand-in of each line and, where
//! `AUTOSSM_TEST_PLUGIN` names it, with the stock plugin too. All have to do the same, but for what a version has changed:
//! the stock plugin is asked which it is.

#[cfg(test)]
mod fake;
#[cfg(test)]
mod lab;
#[cfg(test)]
mod plugin;
#[cfg(test)]
mod scenarios;
