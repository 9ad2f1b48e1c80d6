//! Who takes part in a checkpoint: nodes whole, and of each volume that has replicas at least one.

use super::{
    Coordinator, MemberIndex, MemberState, MemberStep, NodeIndex, Running, State, VolumeIndex, VolumeStep,
};
use crate::ReplicaState;

impl Coordinator<'_> {
    /// Every volume stands still: which replicas take part? With none at all known the barrier is all there is to do.
    pub(super) fn choose(&mut self, running: Running) {
        for place in 0..self.members.len() {
            let Some(state) = &self.members[place].0 else { continue };
            let is_current = state.replica == ReplicaState::Current;
            let volume = self.volumes.get_mut(usize::from(state.volume.0));
            let is_in = volume.is_some_and(|volume| {
                let is_in = matches!(volume.0, VolumeStep::Reached { .. });
                if is_in {
                    volume.0 = VolumeStep::Reached { is_replicated: true };
                }
                is_in
            });
            if let Some(state) = &mut self.members[place].0 {
                state.step = match (is_in, is_current) {
                    (false, _) => MemberStep::Out,
                    (true, true) => MemberStep::Send,
                    (true, false) => MemberStep::LeftOut,
                };
            }
        }
        for place in 0..self.members.len() {
            if let Some(MemberState { step: MemberStep::LeftOut, node, .. }) = self.members[place].0 {
                self.leave_out(node);
            }
        }
        self.state = State::Ask(running);
    }

    /// A node goes on with all of its volumes that take part, or with none.
    pub(super) fn leave_out(&mut self, node: NodeIndex) {
        let members = self.members.iter_mut().filter_map(|member| member.0.as_mut());
        for state in members.filter(|state| state.node == node && state.step.takes_part()) {
            state.forget_unanswered();
            state.step = MemberStep::LeftOut;
        }
    }

    /// A volume that has replicas, and none of them takes part, or none any more; rather one whose own replicas are at fault
    /// than one that others of their node hold back. Once commits are sent, the checkpoint is that of whoever is left.
    pub(super) fn deserted(&self) -> Option<VolumeIndex> {
        let is_committing = matches!(self.state, State::Commit(_));
        let has = |is_it: &dyn Fn(&MemberState) -> bool| {
            self.members.iter().filter_map(|member| member.0.as_ref()).any(is_it)
        };
        let deserted = self.volumes.iter().enumerate().filter_map(|(place, volume)| {
            let volume = (volume.0 == VolumeStep::Reached { is_replicated: true })
                .then_some(VolumeIndex(place as u16))?;
            let is_left = has(&|state| state.step.takes_part() && (is_committing || state.volume == volume));
            (!is_left).then_some(volume)
        });
        let is_held_back =
            |volume| has(&|state| state.volume == volume && state.replica == ReplicaState::Current);
        deserted.min_by_key(|volume| is_held_back(*volume))
    }

    /// How many replicas of a member's node take part.
    pub(super) fn together(&self, member: MemberIndex) -> u16 {
        let state = |index: MemberIndex| self.members.get(usize::from(index.0))?.0.as_ref();
        let node = state(member).map(|state| state.node);
        let members = self.members.iter().filter_map(|member| member.0.as_ref());
        members.filter(|state| Some(state.node) == node && state.step.takes_part()).count() as u16
    }
}
